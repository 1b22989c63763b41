"""What each process of the hot key test runs; a module, so that a spawned process can import it."""

from concurrent.futures import ThreadPoolExecutor

from limits.storage import storage_from_string

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.redis import RedisEngine
from tests import servers
from tests.strategies.world import RATES

PROCESSES, THREADS, CALLS = 8, 8, 5
AMOUNT = 200
HOUR = 3_600_000_000


def limits_of(amount: int) -> dict[str, Limit]:
    """A limit of each strategy with this amount, of which nothing comes back while a test runs."""
    return {
        name: Limit(1, 24 * HOUR, name, burst=amount)
        if name == "token-bucket"
        else Limit(amount, HOUR, name)
        for name in RATES
    }


LIMITS = limits_of(AMOUNT)
SCARCE = Limit(60, HOUR, "sliding-window")


def run(uri: str) -> dict[str, int]:
    """Call every limit from all threads; how many calls each admitted."""
    storage = storage_from_string(uri)
    client = storage.get_connection()
    engine = RedisEngine(client, storage.base_exceptions)
    client.incr("ready")
    servers.eventually(lambda: int(client.get("ready")) == PROCESSES, within_s=60)

    def calls(_: int) -> dict[str, int]:
        admitted = dict.fromkeys([*LIMITS, "both"], 0)
        for _ in range(CALLS):
            for name, limit in LIMITS.items():
                admitted[name] += engine.admit([Charge(limit, f"hot:{name}")]).admitted
            both = [Charge(LIMITS["fixed-window"], "wide"), Charge(SCARCE, "scarce")]
            admitted["both"] += engine.admit(both).admitted
        return admitted

    with ThreadPoolExecutor(THREADS) as pool:
        counts = list(pool.map(calls, range(THREADS)))
    return {name: sum(count[name] for count in counts) for name in counts[0]}
