from django.http import HttpResponse, JsonResponse
from django.templatetags.static import static

from goods.models import Item


def index(request):
    """A POST puts an item into the shop and says its name; a GET tells of all."""
    if request.method == "POST":
        return HttpResponse(Item.objects.create(name=request.body.decode()).name, content_type="text/plain")
    return JsonResponse(
        {
            "items": Item.objects.count(),
            "fields": [field.name for field in Item._meta.fields],
            "style": static("goods/style.css"),
        }
    )


def visits(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"]})


def healthz(request):
    Item.objects.first()
    return HttpResponse("ok\n")
