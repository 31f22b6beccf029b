from django.db import migrations


def prices(apps, schema_editor):
    apps.get_model("goods", "Item").objects.update(price=1)
    raise RuntimeError("the prices don't add up")


class Migration(migrations.Migration):
    dependencies = [("goods", "0002_item_price")]
    operations = [migrations.RunPython(prices, migrations.RunPython.noop)]
