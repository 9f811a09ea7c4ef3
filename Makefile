# `make demo` and `make test` need Python 3.10 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint clean

# Train on the procedural scene, score it, render a video, extract a mesh, and say where each lies.
# A demo that was interrupted goes on; of one that is done, scores and mesh are made again. The still
# life lies within 1.35 of the origin and the cameras at 4, so nothing is nearer than 2.6 or farther
# than 5.4.
demo: $(VENV)/.installed
	$(RUN) train.py --preset demozip --dataset_name blender --scene demo --near 2.6 --far 5.4 \
		--exp_name demo \
		$(if $(wildcard log/demo/checkpoint_*.pt),--continue_training)
	$(RUN) visualize.py --run log/demo --frames 40 --fps 20 --visualize_depth --visualize_normals
	$(RUN) extract_mesh.py --run log/demo --grid_size 128

test: lint
	$(RUN) -m pytest

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.installed
