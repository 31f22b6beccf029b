from importlib.metadata import version

from pyramid.view import view_config


@view_config(route_name="hello", renderer="json")
def hello(request):
    """Says which version of the package is installed."""
    return {"hello": request.matchdict["name"], "version": version("pyramid-hello")}
