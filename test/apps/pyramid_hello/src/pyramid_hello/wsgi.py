from pyramid.config import Configurator


def make_application():
    with Configurator() as config:
        config.add_route("hello", "/{name:.*}")
        config.scan("pyramid_hello.views")
        return config.make_wsgi_app()


application = make_application()
