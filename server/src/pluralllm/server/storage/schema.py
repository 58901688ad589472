"""The tables of the database. A change of a table here needs a migration, and a test compares the tables with the migrations."""

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),  # order of creation
    Column("id", String(40), nullable=False, unique=True),
    Column("spec_json", LargeBinary, nullable=False),
    Column("spec_sha256", String(64), nullable=False),
    Column("created_s", Float, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("run", String(40), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at_s", Float, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("facts", Text, nullable=False),  # JSON
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("run", String(40), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("format", Integer, nullable=False),
    Column("content", Text, nullable=False),  # JSON
    Column("sha256", String(64), nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("run", String(40), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("outcome", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("version", Integer),
    Column("cohort", Text, nullable=False),  # JSON list of clients
    Column("created_s", Float, nullable=False),
    Column("updated_s", Float, nullable=False),
    Column("rollouts", String(64), nullable=False, server_default=""),
    Column("tail", Text, nullable=False, server_default="[]"),  # JSON list of the 64 numbers of a private sum's tail
)

receipts = Table(
    "receipts",
    metadata,
    Column("run", String(40), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("client", String(40), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("examples", BigInteger, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("distance", Float),
    Column("norm", Float),
)

round_messages = Table(
    "round_messages",
    metadata,
    Column("run", String(40), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("step", String(20), primary_key=True),
    Column("client", String(40), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("run", String(40), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("round", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("spec_sha256", String(64), nullable=False),
    Column("parent_sha256", String(64), nullable=False),
    Column("record_sha256", String(64), nullable=False),
    Column("updates", Text, nullable=False),  # JSON list of [client, digest, examples]
    Column("created_s", Float, nullable=False),
    Column("moments", Text, nullable=False, server_default="[]"),  # JSON list of digests
    Column("weights", Text, nullable=False, server_default="[]"),  # JSON list of numbers, one for each update, or empty
    Column("scales", Text, nullable=False, server_default="[]"),  # as weights
    Column("transcript", String(64), nullable=False, server_default=""),  # digest; "" unless the round was private
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("run", String(40), nullable=False),
    Column("version", Integer, nullable=False),
    Column("client", String(40), nullable=False),
    Column("group_name", Text, nullable=False),
    Column("role", String(20), nullable=False),
    Column("alignment_score", Float),
    Column("alignment_score_base2", Float),
    Column("wasserstein_score", Float),
    Column("questions", Integer, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("not_reported", String(40)),  # the reason why the client keeps its scores; NULL if it reports them
    Column("context_gain", Float),  # NULL if the client does not report it
    Index("evaluations_by_version", "run", "version", "client", unique=True),
    sqlite_autoincrement=True,  # a position is never used twice, so a reader that goes on from a cursor misses no row
)

clients = Table(
    "clients",
    metadata,
    Column("client", String(40), primary_key=True),
    Column("group_name", Text, nullable=False),
    Column("role", String(20), nullable=False),
    Column("training_questions", Integer, nullable=False),
    Column("software_version", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("last_seen_s", Float, nullable=False),
    Column("noise", Text),  # JSON: the fields of a NoiseStatement; NULL if the client states nothing
)

members = Table(
    "members",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("role", String(20), nullable=False),
    Column("group_name", Text, nullable=False),
    Column("group_role", String(20), nullable=False),
    Column("approved", Boolean, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("revoked_s", Float),
    Column("runs", Text, nullable=False, server_default="[]"),  # JSON list: the runs that an observer may read
    Column("max_examples", BigInteger, nullable=False, server_default="10000"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(40), primary_key=True),
    Column("member", String(40), nullable=False),
    Column("key_sha256", String(64), nullable=False),
    Column("not_after_s", Float, nullable=False),
    Column("issued_s", Float, nullable=False),
    Column("revoked_s", Float),
    Column("chain_pem", LargeBinary, nullable=False),
    Column("predecessor", String(40), nullable=False, server_default=""),  # serial of the certificate that was renewed
)

invites = Table(
    "invites",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("name", String(40), nullable=False),
    Column("role", String(20), nullable=False),
    Column("group_name", Text, nullable=False),
    Column("group_role", String(20), nullable=False),
    Column("needs_approval", Boolean, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float, nullable=False),
    Column("withdrawn", Boolean, nullable=False),
    Column("used_by_key", String(64), nullable=False),  # "" until it is used
    Column("runs", Text, nullable=False, server_default="[]"),  # JSON list: the runs that an observer may read
    Column("max_examples", BigInteger, nullable=False, server_default="10000"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", String(40), nullable=False),
    Column("serial", String(40), nullable=False),
    Column("action", String(60), nullable=False),
    Column("object", Text, nullable=False),
    Column("result", String(60), nullable=False),
    Column("facts_json", Text, nullable=False),
    Column("previous_sha256", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
)

roster = Table(
    "roster",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("name", String(40), nullable=False),
    Column("group_name", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("change", String(20), nullable=False),
    Column("key_der", LargeBinary, nullable=False),  # the peer key itself
    Column("head", String(64), nullable=False),  # hash over all entries up to this one
)

leadership = Table(
    "leadership",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1: the table has one row
    Column("generation", BigInteger, nullable=False),  # generation of the coordinator that may write
)
