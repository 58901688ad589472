"""The values that known_answers.json pins, computed by this release.

`python -m support.private_known_answers` prints the file. Write it again only with a new name of the protocol.
"""

import json

from support.private_members import TERMS, digest, member_key, numbers, person

from pluralllm.common.private_rounds import dealing, masks, peer_keys, shamir
from pluralllm.common.private_rounds.messages import (
    Box,
    Complaint,
    Confirmation,
    Reveal,
    UpdateStatement,
    digest_of_members,
)
from pluralllm.common.private_rounds.roster import Roster, RosterChange, RosterEntry
from pluralllm.common.private_rounds.sealed_boxes import HybridKey
from pluralllm.common.private_rounds.statements import dealers_digest, derived, enc, hashed, sum_digest

# Made once by `seal` for the box key of "ann", purpose b"a purpose", text b"a text".
SEALED = (
    "243838726b615ecf243f473863da5681797709a700f92bbb0eac861e7d7b356a7af4c57f1bdd48f38204bccc97e43455bdd2"
    "efca036b07bce401c34162f89057c7b452f83dd4161c07635f8a04cd9632fec1353d147e5e446c444db5c4801a28a25f16bf"
    "310618340b0b8f4d9c640160b448c308beea66da9b67b99c43180284b1df37f61356404dd67ff32646afcc3d0f26f2ef49df"
    "b5f6d3fa64296d3ea85775ffbed93f453a178384b0818f4857b00867aabb05b66d757b5793e195066a1402e5cb2bb889a45d"
    "7494522623120c357e4eae9759d876a326ed076a016e0ac7d46fef88cd085f071d419c6f35d425e7087b5493cc734362cd50"
    "a9613cf5da8fceaa4a73cf38c862cdebd8741cf9790242d889a28f3554dd79f32fbae7f85ce95b70a96b5aadf135beff800d"
    "9720b43beac3ec9c6fc547be3763fc33f0d7946c365dab6763f71a6e902373c3ccfec25c2ad74f88754b3d2200a9e7cb4e56"
    "5429325363181ecc57130bfda1ab42b6fffec0f5acd7a52a8f4643b0adbdfb73777a128ed1959431ae39b08ca0087d5daa0c"
    "1cfe071645eccd371eb42f30ea2142876966d7e0f4e26a1657a9e337f615cc19c4cfdbaa8c9bc2955772e38c25c0f1807817"
    "1ab416438176ba69ded9e79c9e30ca39c9ada135d2ea54b941c89663f508e845ec85db602f7828fa4035df37049039fab104"
    "579380e909047eee4d81e9a72495b84f6c637f905c789404769796ecf7d9478e9c456dab9007b07d02b4baea503c48b10c85"
    "9e64c49ff13f047a30e4198919eb4fcc3370cad5952a47fe7f1a68e278df8a5ccf800e337d8c0d98ed3c0a62e0e94a49143d"
    "eb19986fb7b1ecbfea2a38f78362bd89f80ddcb81accfd0e2eb1b37654d79a8e647f8348b016ccb4ade2de57c8eb8626f361"
    "a39a1f116f3e3c48a69e4755895a3610b956c7a484f4a4a842b906700ee8bbf3c61876dda548064191c29366f0f14ec0a446"
    "ca80ec7839ac2081f03e5b975f0415f49a9eeadea9cd5c179187785ad72e51a246de2f835bad6fc070afd6283e0071ebbc2b"
    "dc0b5b878fc9cd4103c134c69ac1197c7351e7e1a0d68c9dd6304c3a1594cd65abc2cf49253d29bc98d1fb8b21ba72e202e6"
    "a54727a0e6aa5c87ac245ec6863c3d3965cad3d7e4d6f5b2e572f0a2f80701e1e6602243268e7594c6eefad9cc63b383b984"
    "4d5429079ec9dfdbfe55d03cbbea7897bfe8cdd386da4edad9aac4ffa39147c9b9e88fc8622e1f402584f168ea4114d4b753"
    "858ca206d9738cc06a0c01c2deeaf1ef941282a43c52cc9ce2453b44ebd9f3c4a2c97c92affce60505562e47f13d16dd7276"
    "5aba0fdfd49268b7afb36ee3c42c65ccc4f01a42e1054559ad89d1b4f01a3d7607e81f328fcfffd35fd0b5adb02d07d83dc3"
    "753d47cca3e09a7be9f22caf524ee6b58739ec665cd99c3079b6689c7bfe21685fbfbb1a10ebec3d896f12df64e7ba1ed0b7"
    "9b922cf1acd8651f4d099b0f7076f78c7215bf08e190fa6a251ee300788b6a1496ee75d04b9aa2f81e1c7bd1be265413f222"
    "640141cb62747445fae95a1e70155822252ddf1106eca69dce301db5e9b5bdeb3fabd97b18e6e4fce46a"
)
ROSTER = (
    RosterEntry(1, "ann", "Côte d'Ivoire", "a" * 64, RosterChange.ADDED),
    RosterEntry(2, "ann", "Côte d'Ivoire", "a" * 64, RosterChange.REMOVED),
)


def known_answers() -> dict[str, str]:
    """Returns each pinned value in hex, by a name that says what it is."""
    ann, bob, cleo = (person(name) for name in ("ann", "bob", "cleo"))
    r1 = digest_of_members(TERMS.sha256, [one.member for one in (ann, bob, cleo)])
    r2 = dealers_digest(r1, ["ann", "bob", "cleo"])
    r3 = sum_digest(r2, [("ann", digest("file a")), ("bob", digest("file b"))])
    shares = shamir.split(digest("secret"), 2, range(1, 4), numbers("shamir"))
    box = Box(2, bytes(1202), bytes(1168), digest("s"), digest("m"), digest("p"), 3).signed(ann.key, r1, "ann", "bob")
    spki = peer_keys.public_der(ann.key)
    values = {
        "enc": enc("text", b"\x00\xff", 7),
        "H": hashed("kind", "text", 7),
        "K": derived(digest("secret"), "label", "text", 7),
        "K of 96 bytes": derived(digest("secret"), "label", size=96),
        "terms": TERMS.sha256,
        "peer key": spki,
        "endorsement": peer_keys.endorsed(member_key("certificate"), "values", "ann", spki),
        "secret m": ann.secrets.mask,
        "secret b": ann.secrets.own,
        "secret e": ann.secrets.box,
        "training seed": ann.secrets.training,
        "mask public": ann.keys.mask_public,
        "box public": ann.keys.box_public,
        "commitment": ann.keys.commitment,
        "statement keys": ann.keys.signature,
        "digest of keys": ann.keys.sha256,
        "R1": r1,
        "R2": r2,
        "R3": r3,
        "pair key of ann and bob": dealing.pair_key(ann.secrets.mask, r1, "ann", "bob"),
        "pair key of bob and ann": dealing.pair_key(bob.secrets.mask, r1, "bob", "ann"),
        "commitment to a pair key": dealing.pair_commitment(r1, "ann", "bob", digest("pair key")),
        "commitment to a share": dealing.share_commitment(r1, "ann", "bob", dealing.SELF, shares[1]),
        "share 1": shares[1],
        "share 2": shares[2],
        "share 3": shares[3],
        "opened box": HybridKey.of(ann.secrets.box).opened(b"a purpose", bytes.fromhex(SEALED)),
        "statement box": box.signature,
        "statement complaint": Complaint("bob", digest("box")).signed(ann.key, r2, "ann").signature,
        "statement update": UpdateStatement("ann", digest("file a")).signed(ann.key, r2).signature,
        "statement confirm": Confirmation(r3).signed(ann.key).signature,
        "statement reveal": Reveal.of(r3, {1: shares[1], 2: shares[2]}).signed(ann.key).signature,
        "pair stream key": masks.pair_stream_key(digest("k ij"), digest("k ji"), r2, 1, 2),
        "self stream key": masks.self_stream_key(ann.secrets.own, r2, 1),
        "stream from 0": masks.stream(digest("stream"), 0, 8).astype("<u4").tobytes(),
        "stream from 1000003": masks.stream(digest("stream"), 1_000_003, 8).astype("<u4").tobytes(),
        "roster head": Roster().extended(ROSTER).head,
        "body of keys": digest(ann.keys.to_json().decode()),
        "body of a confirmation": Confirmation(r3).signed(ann.key).to_json(),
    }
    return {name: value.hex() for name, value in values.items()}


if __name__ == "__main__":
    print(json.dumps(known_answers(), indent=1, sort_keys=True))
