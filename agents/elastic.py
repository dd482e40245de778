"""What of the settings is Elasticsearch's: how to reach it."""

from __future__ import annotations

from agents.settings import Settings
from cco.config import ConfigError
from model_sync.elastic_client import ElasticOptions


def elastic_options(settings: Settings) -> ElasticOptions:
    """How to reach Elasticsearch. Raises ConfigError where it is not set up, or its certificates are not there."""
    urls = settings.elasticsearch_url_list
    if not urls:
        raise ConfigError(
            'elasticsearch.urls: is not set, so there is no Elasticsearch: set it to "http://localhost:9200", say,'
            " in the table [elasticsearch] or by CCO_ELASTICSEARCH_URLS or --elasticsearch-urls"
        )
    ca_file = settings.elasticsearch_ca_file
    if ca_file is not None and not ca_file.is_file():
        raise ConfigError(f"elasticsearch.ca_file: there is no file {ca_file}")
    password, key = settings.elasticsearch_password, settings.elasticsearch_api_key
    return ElasticOptions(
        urls=tuple(urls),
        username=settings.elasticsearch_username,
        password=None if password is None else password.get_secret_value(),
        api_key=None if key is None else key.get_secret_value(),
        ca_file=ca_file,
        prefix=settings.elasticsearch_index_prefix,
    )
