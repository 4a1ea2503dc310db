"""A lease on S3: every change is a conditional request."""

import contextlib
import time
from typing import Any

from fsspec.asyn import sync

from data.lease_state import Seen, settle
from data.storage import Storage


class LeaseOnS3:
    def __init__(self, file: Storage):
        self._file = file

    def read(self) -> Seen | None:
        try:
            return sync(self._file.fs.loop, self._get)
        except FileNotFoundError:
            return None

    async def _get(self) -> Seen:
        """In one request: the content of one moment with the mark of another would let a dead owner renew."""
        bucket, key = self._place()
        answer = await self._file.fs._call_s3("get_object", Bucket=bucket, Key=key)
        content = await answer["Body"].read()
        return Seen(content, str(answer["ETag"]), answer["LastModified"].timestamp())

    def create(self, content: bytes) -> Seen | None:
        made = self._put(content, IfNoneMatch="*")
        if made is None:
            return None
        settle()
        now = self.read()
        return made if now and now.content == content else None

    def renew(self, seen: Seen, content: bytes) -> Seen | None:
        return self._put(content, IfMatch=seen.mark)

    def take(self, seen: Seen, content: bytes) -> Seen | None:
        made = self._put(content, IfMatch=seen.mark)
        if made is None:
            return None
        settle()
        now = self.read()
        return made if now and now.content == content else None

    def remove(self, seen: Seen) -> None:
        bucket, key = self._place()
        head = self._head()
        if head and head[0] == seen.mark:
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                self._conditional("delete_object", Bucket=bucket, Key=key, IfMatch=seen.mark)

    def _put(self, content: bytes, **condition: str) -> Seen | None:
        bucket, key = self._place()
        answer = self._conditional("put_object", Bucket=bucket, Key=key, Body=content, **condition)
        return None if answer is None else Seen(content, str(answer["ETag"]), time.time())

    def _conditional(self, request: str, **arguments: Any) -> Any:
        """None if the condition does not hold."""
        try:
            return self._file.fs.call_s3(request, **arguments)
        except OSError as error:
            if isinstance(error, FileExistsError) or _failed_condition(error):
                return None
            raise

    def _place(self) -> tuple[str, str]:
        bucket, key, _ = self._file.fs.split_path(self._file.path)
        return bucket, key

    def _head(self) -> tuple[str, float] | None:
        try:
            info = self._file.fs.info(self._file.path, refresh=True)
        except FileNotFoundError:
            return None
        return str(info["ETag"]), info["LastModified"].timestamp()


def _failed_condition(error: BaseException) -> bool:
    cause = error.__cause__
    code = getattr(cause, "response", {}).get("Error", {}).get("Code", "")
    return code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey")
