"""What catalogs, and the stores behind them, raise, as our errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError
from pyiceberg.exceptions import (
    BadRequestError,
    CommitFailedException,
    DynamoDbError,
    ForbiddenError,
    RESTError,
    SignError,
    TableAlreadyExistsError,
    UnauthorizedError,
    ValidationException,
    WaitingForLockException,
)

from pipeline.errors import FatalError, HeadwaterError, TransientError

OVERTAKEN = (CommitFailedException, TableAlreadyExistsError)
"""Others have committed first: it is done again, on what they have made."""
PASSING = (
    OSError,  # requests' and pyarrow's among them
    json.JSONDecodeError,  # not an answer of a catalog
    BotoCoreError,
    ClientError,
    DynamoDbError,
    RESTError,
    SignError,
    WaitingForLockException,
    ValidationException,  # a file to be replaced is not in the table
    *OVERTAKEN,
    MemoryError,
)
"""What says nothing of the rows. Beside it: what the database of an SQL catalog raises."""


def is_passing(error: Exception) -> bool:
    """Say whether an error says nothing of the rows: another try may help."""
    if isinstance(error, BadRequestError):
        return False
    return isinstance(error, PASSING) or type(error).__module__.startswith("sqlalchemy.")


@contextmanager
def explained_error(what: str) -> Iterator[None]:
    """Turn what a catalog or its store raises into our errors: refusals are fatal, anything else may pass."""
    try:
        yield
    except HeadwaterError:
        raise
    except (UnauthorizedError, ForbiddenError) as error:
        raise FatalError(f"{what}: {first_line(error)}", hint="headwater check ([lake.catalog])") from error
    except Exception as error:
        raise TransientError(f"{what}: {type(error).__name__}: {first_line(error)}", hint="headwater check") from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [repr(error)])[0]
