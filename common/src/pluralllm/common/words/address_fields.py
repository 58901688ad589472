"""The types of fields that hold an address, for models of pydantic, which `addresses` does without."""

from typing import Annotated

from pydantic import AfterValidator

from pluralllm.common.words.addresses import check_address, check_listen

ListenAddress = Annotated[str, AfterValidator(check_listen)]
Address = Annotated[str, AfterValidator(check_address)]
