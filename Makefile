# Every target makes .venv first, when it is not there. CI runs `make test` and then `make test-further`.
VENV := .venv/bin
EXTRAS := train,k8s,s3,bench,dev
# Two at a time, each file by one of them: what takes long in most tests is a single process that starts.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/python -m pytest -n 2 --dist loadfile

.PHONY: install lint test test-unit test-integration test-further test-long test-faults

install:
	@./launch/install.sh $(EXTRAS)

lint: install
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

test: lint test-unit test-integration

test-unit: install
	$(PYTEST) -m "not integration"

test-integration: install
	$(PYTEST) -m "integration and not further and not long"

# Further cases, and the parts of it that few use: a quarter of an hour more.
test-further: install
	$(PYTEST) -m "further and not long"

# What takes minutes each: runs killed and resized 20 times, every ZeRO stage on up to 8 ranks.
test-long: install
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -m long -s

# The whole matrix: every fault at every phase, as a dated report. Takes half an hour on a quiet machine.
test-faults: install
	OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu $(VENV)/python -m zerofleet.launch bench fault_matrix \
		--output benchmarks/results/$$(date +%F)-faults.json
