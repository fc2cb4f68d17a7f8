import sys, time, traceback
from tests.fuzz.targets import TARGETS
from tests.fuzz.target import run

names = sys.argv[2:] or [t.name for t in TARGETS]
for t in TARGETS:
    if t.name in names:
        b = time.time()
        try:
            r = run(t, int(sys.argv[1]), 1)
            print(t.name, r, time.time() - b, flush=True)
        except BaseException as e:
            print("FAIL", t.name)
            traceback.print_exc(limit=-6)
            for n in getattr(e, "__notes__", []):
                print(n[:3000])
