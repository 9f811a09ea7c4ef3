"""Render a video of a trained scene: colours, distances, normals.

    python visualize.py --run log/blender_lego_mipnerf                      a circle about the scene
    python visualize.py --scene lego --visualize_depth --visualize_normals  all three, side by side
    python visualize.py --dataset_name colmap --scene garden                through the cameras
    python visualize.py --dataset_name llff --scene trex --path spiral      LLFF's spiral
    python visualize.py --dataset_name multicam --scene lego --path zoom    to twice and back
    python visualize.py --run log/nerv_demo_nerv --relight light --path still  a light goes round

Needs a run folder and nothing else. Frames are kept as they are rendered, so a video that was
interrupted goes on where it stopped; the same command does it.
"""

from config import early_config, get_config
from runtime.errors import run_script

if __name__ == "__main__":
    early_config("visualize")

from checkpoint import open_run
from exporters.video import make_video
from runtime import distributed
from runtime.devices import select_device


def main(argv=None):
    run = open_run(get_config(argv, "visualize"))
    device = select_device(run.config)
    with distributed.joined_ranks(device):
        return make_video(run, device)


if __name__ == "__main__":
    run_script(main)
