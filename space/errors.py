"""What a caller is told when there is no answer. The codes are a promise: programs branch on them, people read on."""

# code: (HTTP status, meaning). Names stay as they are; `/docs` shows this table.
CODES = {
    "nothing_given": (422, "no text, picture or sound was given"),
    "wrong_type": (422, "a value is of the wrong type"),
    "unknown_field": (422, "a name that is not text, image or audio"),
    "not_a_file": (422, "a URL, a path or other text stands where a file belongs; nothing is ever fetched"),
    "modality_not_supported": (422, "the model does not read this modality"),
    "text_too_long": (413, "the text has too many characters"),
    "image_unreadable": (422, "no picture, damaged, or too many pixels"),
    "audio_unreadable": (422, "no sound, damaged, too short, or NaN"),
    "audio_too_long": (413, "the sound lasts too long"),
    "too_many_rows": (413, "more samples than one batch may have"),
    "bad_table": (422, "no CSV or TSV table, or one without the columns, or with rows that do not fit its header"),
    "bad_archive": (422, "the zip is damaged, leads out of itself, is packed in a rare way, or holds no single table"),
    "body_too_large": (413, "the request has too many bytes, files included"),
    "body_too_slow": (408, "the request did not arrive in time, and was given up"),
    "bad_parameter": (422, "a parameter in the URL has a value that is not allowed"),
    "bad_json": (400, "the body is no JSON, or of another shape"),
    "bad_form": (400, "the body is no multipart form, or has too many parts"),
    "unsupported_media_type": (415, "the body is neither JSON nor a multipart form"),
    "unauthorized": (401, "the server demands a token, and none or a wrong one came"),
    "not_found": (404, "no such address"),
    "method_not_allowed": (405, "the address does not take this method"),
    "overloaded": (429, "too many samples are waiting; come again after `Retry-After` seconds"),
    "timeout": (504, "no answer in time"),
    "draining": (503, "the server is about to stop; come again after `Retry-After` seconds"),
    "not_supported": (501, "the served model cannot do this"),
    "storage_full": (507, "there is no room for what should be stored"),
    "internal_error": (500, "a fault of the server; the log has it under the request id"),
}
RETRY_AFTER_SECONDS = {"overloaded": 1, "draining": 5}


class Refusal(Exception):
    """An answer that is not given, told in one sentence that may go to a stranger.

    Args:
        code: one of `CODES`, which fixes the HTTP status.
        message: what is wrong, what is allowed, what to do.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message
        self.status = CODES[code][0]

    def body(self, request_id: str | None = None) -> dict:
        """Give the JSON body; inside a batch there is no request id of its own."""
        told = {"code": self.code, "message": self.message}
        return {"error": told if request_id is None else {**told, "request_id": request_id}}

    def headers(self) -> dict[str, str]:
        seconds = RETRY_AFTER_SECONDS.get(self.code)
        return {} if seconds is None else {"Retry-After": str(seconds)}


class BadInput(Refusal):
    """What the caller gave cannot be used."""


def shown(text: str, limit: int = 60) -> str:
    """Quote untrusted words: short, on one line, and in ASCII, so that any client can print them."""
    return ascii(text if len(text) <= limit else text[:limit] + "…")
