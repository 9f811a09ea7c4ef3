# `make demo` and `make test` need Python 3.10 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
# On Windows, make runs its commands by the sh of Git's tools.
RUN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python

.PHONY: demo test lint clean

# Train on the procedural scene, score it, render a video and extract a mesh; then print where each
# lies. An interrupted demo resumes. The still life lies within 1.35 of the origin and the cameras at
# distance 4, so near and far are 2.6 and 5.4.
demo: $(VENV)/.installed
	$(RUN) train.py --model zipnerf --preset laptop --minutes 2 --dataset_name blender \
		--scene demo --near 2.6 --far 5.4 --exp_name demo \
		$(if $(wildcard log/demo/checkpoint_*.pt),--continue_training)
	$(RUN) visualize.py --run log/demo --width 400 --frames 30 --fps 15 --visualize_depth \
		--visualize_normals
	$(RUN) extract_mesh.py --run log/demo --grid_size 128
	$(RUN) export.py --run log/demo
	@echo
	@echo "Video:  $$(ls -t log/demo/video_*/rgb_depth_normals_*fps.* | grep -v gif | head -n 1)"
	@echo "Mesh:   $$(ls -t log/demo/mesh_*/mesh.ply | head -n 1)"
	@echo "Page:   log/demo/page.html   (open it in a browser: double click)"
	@echo "Scores: $$(ls -t log/demo/eval_test_*/scores.json | head -n 1)"
	@echo "Next:   $(RUN) evaluate.py --run log/demo"
	@echo "        $(RUN) train.py --model zipnerf --scene lego   (after scripts/download_blender.sh)"

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.installed
