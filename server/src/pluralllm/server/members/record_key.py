"""The federation's record key, in the file STATE/authority/record-key.pem (mode 0600). It signs version records and audit heads.

The key has no certificate and no end: members know its public half from their invites. A standby coordinator must have the same
file, as it must have the other files of the authority.
"""

from pathlib import Path

from pluralllm.common.errors.membership import CertificateInvalid
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.files import write_durably
from pluralllm.common.trust.certificates import PrivateKey, key_from_pem, key_to_pem, new_key

RECORD_KEY = "record-key.pem"
SECRET = 0o600


def make_record_key(folder: Path) -> PrivateKey:
    """Makes a new record key and stores it in the authority's folder. Raises StorageFull if the disk is full."""
    key = new_key()
    write_durably(folder / RECORD_KEY, key_to_pem(key), SECRET)
    return key


def record_key_of(folder: Path) -> PrivateKey:
    """Returns the record key in the authority's folder. An authority that an older release has made gets its key now.

    Raises InvalidConfig if the file is damaged, StorageFull if the disk is full.
    """
    path = folder / RECORD_KEY
    return read_record_key_file(path) if path.exists() else make_record_key(folder)


def read_record_key_file(path: Path) -> PrivateKey:
    """Reads a record key from its file.

    Raises InvalidConfig if the file is damaged. No new key is made then, because members could not check its signatures.
    """
    try:
        return key_from_pem(path.read_bytes())
    except (OSError, CertificateInvalid) as error:
        problem = f"  {error} Copy the file from a backup or from the standby's authority folder."
        raise InvalidConfig(file=str(path), problems=problem) from error
