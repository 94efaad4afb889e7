"""A real S3 API on loopback: a server that a module's tests share, and the environment that finds it."""

from collections.abc import Iterator

import pytest


class Bucket:
    """A bucket in the server at `url`."""

    def __init__(self, url: str, name: str) -> None:
        import boto3

        self.url, self.name = url, name
        self.client = boto3.client("s3", endpoint_url=url)
        self.client.create_bucket(Bucket=name)

    def put(self, key: str, content: bytes) -> None:
        """Writes an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def delete(self, key: str) -> None:
        """Removes an object."""
        self.client.delete_object(Bucket=self.name, Key=key)

    def keys(self) -> list[str]:
        """The keys of all objects that are no marks of folders."""
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return sorted(entry["Key"] for entry in found if not entry["Key"].endswith("/"))

    def remove(self) -> None:
        """Removes the bucket with all that is in it."""
        for entry in self.client.list_objects_v2(Bucket=self.name).get("Contents", []):
            self.delete(entry["Key"])
        self.client.delete_bucket(Bucket=self.name)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of a server that every test of the module shares."""
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


def at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process find the server at `url`."""
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
