from django.urls import path
from goods import views

urlpatterns = [path("", views.index), path("healthz", views.healthz), path("visits", views.visits)]
