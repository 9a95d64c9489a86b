# make quickstart   from a small ResNet to its accuracy–ReLU frontier and report, on real images
# make test         the test suite
# make lint         style and types
# make docs         the tables in README.md and docs/ that follow from the code
# make pictures     docs/demo.png, by a headless chromium
# make demo-networks  the two networks that `parelu demo` shows, trained again, in minutes
# make site         the guide and the API reference as a site, in build/site
# make mutants      which small changes to the code the tests do not notice, half an hour; ROOMS="gate masks" for some rooms
# make fuzz         every decoder of bytes of others, some minutes; SECONDS=3600 for an hour, TARGETS="program material"
# make fuzz-corpus  the samples that fuzzing starts from, made again

PYTHON ?= python3
INSTALLED = .venv/.installed

quickstart: $(INSTALLED)
	.venv/bin/parelu quickstart

test: export PYTHONDONTWRITEBYTECODE =  # where it is set, each of the many processes would compile all sources

test: $(INSTALLED)
	.venv/bin/python -m pytest

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright

docs: $(INSTALLED)
	.venv/bin/python docs/generate.py

pictures: .venv/.browser
	.venv/bin/python docs/pictures.py

demo-networks: $(INSTALLED)
	.venv/bin/python benchmarks/demo_networks.py

site: .venv/.site
	rm -rf build/pages
	mkdir -p build/pages/benchmarks
	cp -r README.md CONTRIBUTING.md CHANGELOG.md LICENSE docs examples build/pages
	cp benchmarks/README.md build/pages/benchmarks
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

mutants: .venv/.mutants
	.venv/bin/python benchmarks/mutants.py $(ROOMS)

fuzz: SECONDS = 240
fuzz fuzz-corpus: export PYTHONPATH = tests

fuzz: .venv/.fuzz
	.venv/bin/python -m fuzz.run $(TARGETS) --seconds $(SECONDS)

fuzz-corpus: $(INSTALLED)
	.venv/bin/python -m fuzz.corpus

.venv/.site .venv/.mutants .venv/.fuzz .venv/.browser: .venv/.%: $(INSTALLED)
	.venv/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "parelu needs python 3.11 or newer: make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: quickstart test lint docs pictures demo-networks site mutants fuzz fuzz-corpus
