from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=1000)
    # The version before goes on writing items without one.
    price = models.IntegerField(null=True)
