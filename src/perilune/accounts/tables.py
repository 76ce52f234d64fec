"""The tables of HOME/accounts.db. Forward only: later versions append statements, never edit them.

An *account* is a pot of money with an optional budget; every project has one and every key has one, and a
call reserves and spends in both. `spent` and `reserved` are kept up in the same transaction as the row of
the request that moves them, and `accounts/books.py` proves that they agree. A *wallet* is what an
organisation has paid in (`cash`) and was granted (`voucher`); its *entries* say how. A request with
`prepaid` took its charge from the wallet, `from_voucher` of it from the grants. A web search is a request
without tokens that counts as one of `searches`. *Carried* are the sums of requests of closed months whose
rows were deleted.
All money is integer nano-USD, all times are milliseconds since 1970.
"""

from perilune.store import daybook

SCHEMA: tuple[str, ...] = (
    """CREATE TABLE account (
        id INTEGER PRIMARY KEY,
        budget INTEGER,
        spent INTEGER NOT NULL DEFAULT 0,
        reserved INTEGER NOT NULL DEFAULT 0,
        CHECK (spent >= 0 AND reserved >= 0)
    )""",
    """CREATE TABLE organisation (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE
    )""",
    """CREATE TABLE project (
        id INTEGER PRIMARY KEY,
        organisation_id INTEGER NOT NULL REFERENCES organisation (id),
        account_id INTEGER NOT NULL UNIQUE REFERENCES account (id),
        name TEXT NOT NULL,
        UNIQUE (organisation_id, name)
    )""",
    """CREATE TABLE api_key (
        id INTEGER PRIMARY KEY,
        project_id INTEGER NOT NULL REFERENCES project (id),
        account_id INTEGER NOT NULL UNIQUE REFERENCES account (id),
        digest BLOB NOT NULL UNIQUE,
        hint TEXT NOT NULL,
        name TEXT NOT NULL,
        scopes TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER,
        disabled INTEGER NOT NULL DEFAULT 0
    )""",
    """CREATE TABLE price_version (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        input INTEGER NOT NULL,
        cached_input INTEGER NOT NULL,
        output INTEGER NOT NULL
    )""",
    """CREATE TABLE request (
        id TEXT PRIMARY KEY,
        key_id INTEGER NOT NULL REFERENCES api_key (id),
        project_id INTEGER NOT NULL REFERENCES project (id),
        price_id INTEGER NOT NULL REFERENCES price_version (id),
        model TEXT NOT NULL,
        outcome TEXT NOT NULL DEFAULT 'open',
        estimated INTEGER NOT NULL DEFAULT 0,
        reserved INTEGER NOT NULL,
        charge INTEGER NOT NULL DEFAULT 0,
        uncached INTEGER NOT NULL,
        cached INTEGER NOT NULL DEFAULT 0,
        output INTEGER NOT NULL DEFAULT 0,
        reasoning INTEGER NOT NULL DEFAULT 0,
        opened_ms INTEGER NOT NULL,
        settled_ms INTEGER
    )""",
    "CREATE INDEX request_by_project ON request (project_id, id)",
    "CREATE INDEX request_open ON request (outcome) WHERE outcome = 'open'",
    "ALTER TABLE organisation ADD COLUMN tier TEXT",
    "ALTER TABLE request ADD COLUMN prepaid INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE request ADD COLUMN from_voucher INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX request_by_settled ON request (settled_ms)",
    """CREATE TABLE wallet (
        organisation_id INTEGER PRIMARY KEY REFERENCES organisation (id),
        cash INTEGER NOT NULL DEFAULT 0,
        voucher INTEGER NOT NULL DEFAULT 0,
        reserved INTEGER NOT NULL DEFAULT 0,
        deposited INTEGER NOT NULL DEFAULT 0,
        CHECK (voucher >= 0 AND reserved >= 0)
    )""",
    "INSERT INTO wallet (organisation_id) SELECT id FROM organisation",
    """CREATE TABLE entry (
        id INTEGER PRIMARY KEY,
        organisation_id INTEGER NOT NULL REFERENCES organisation (id),
        kind TEXT NOT NULL,
        cash INTEGER NOT NULL,
        voucher INTEGER NOT NULL,
        reference TEXT NOT NULL,
        note TEXT NOT NULL,
        actor TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        UNIQUE (organisation_id, reference)
    )""",
    """CREATE TABLE carried (
        month TEXT NOT NULL,
        key_id INTEGER NOT NULL REFERENCES api_key (id),
        project_id INTEGER NOT NULL REFERENCES project (id),
        model TEXT NOT NULL,
        price_id INTEGER NOT NULL REFERENCES price_version (id),
        calls INTEGER NOT NULL,
        estimated INTEGER NOT NULL,
        charge INTEGER NOT NULL,
        from_cash INTEGER NOT NULL,
        from_voucher INTEGER NOT NULL,
        uncached INTEGER NOT NULL,
        cached INTEGER NOT NULL,
        output INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        PRIMARY KEY (month, key_id, project_id, model, price_id)
    )""",
    """CREATE TABLE audit (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        actor TEXT NOT NULL,
        act TEXT NOT NULL,
        detail TEXT NOT NULL,
        digest TEXT NOT NULL
    )""",
    "ALTER TABLE price_version ADD COLUMN search INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE request ADD COLUMN searches INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE carried ADD COLUMN searches INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE api_key ADD COLUMN last_used_ms INTEGER",
    # Open rows are those without a time of settling, so another index has them already.
    "DROP INDEX request_open",
    *daybook.TABLE,
)
