"""Defaults that depend on other flags: what each dataset, model and preset changes.

`DEFAULTS` is one ordered table of (condition, values). Every row whose condition holds applies, and
later rows override earlier ones; the `--config` file and typed flags override them all. A condition
sees the values that the rows above it left, so rows that choose a dataset or field come first.
"""

from typing import Any

# Sizes of a training: the released configuration of a model on a dataset; one 8-12 GB GPU; minutes
# on two CPU cores; seconds, to see that everything runs. Each is for every model and dataset.
PRESETS = ("paper", "gpu", "laptop", "debug")

# Captures of unbounded surroundings (as are inward-facing ones of "llff"), and synthetic scenes.
UNBOUNDED = ("colmap", "nerfstudio")
SYNTHETIC = ("blender", "multicam", "nerv")

# The models with proposals, and the model whose sampling and fields each --nerv_field uses.
PROPOSALS = ("mipnerf360", "zipnerf")
NERV_GEOMETRY = {"hash": "zipnerf", "mlp": "mipnerf360"}

DEFAULTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # Only NeRV's own format contains the lights, and the paper's fields are MLPs.
    ({"model": "nerv"}, {"dataset_name": "nerv"}),
    ({"model": "nerv", "preset": "paper"}, {"nerv_field": "mlp"}),

    # Datasets. Blender's cameras lie on a hemisphere of radius 4, which one ellipse cannot follow.
    ({"dataset_name": ("blender", "nerv")}, {
        "factor": 1, "bg_range": (1.0, 1.0), "near": 2.0, "far": 6.0, "path": "spherical"}),
    ({"dataset_name": "multicam"}, {
        "factor": 1, "bg_range": (1.0, 1.0), "path": "spherical"}),
    ({"dataset_name": "llff"}, {
        "factor": 4, "bg_range": (0.0, 0.0), "ndc": True, "ray_shape": "cylinder",
        "density_noise": 1.0}),
    # The density of photographs is foggy; its isosurface is a ragged sheet.
    ({"dataset_name": (*UNBOUNDED, "llff")}, {"method": "tsdf"}),
    # Inward-facing cameras have no common forward direction, so neither NDC nor its cylinders.
    ({"dataset_name": "llff", "spherify": True}, {"ndc": False, "ray_shape": "cone"}),
    ({"dataset_name": "colmap"}, {"factor": 4, "bg_range": (0.0, 0.0), "lindisp": True}),
    ({"dataset_name": "nerfstudio"}, {"factor": 1, "bg_range": (0.0, 0.0), "lindisp": True}),

    # Models, and preset "gpu", which has no rows of its own: the method of the released
    # configurations, on a schedule for one 8-12 GB GPU.
    ({"geometry": "mipnerf360"}, {
        "num_samples": 32, "hidden": 1024, "bottleneck": 256, "weight_init": "he",
        "fine_loss_mult": 0.0, "coarse_loss_mult": 0.0, "charbonnier_loss_mult": 1.0,
        "interlevel_loss_mult": 1.0, "distortion_loss_mult": 0.01, "lr_init": 1e-3,
        "lr_final": 1e-5, "lr_delay_steps": 512, "adam_eps": 1e-6, "grad_max_norm": 1e-3}),
    ({"geometry": "zipnerf"}, {
        "num_samples": 32, "hidden": 64, "depth": 1, "prop_hidden": 64, "prop_depth": 1,
        "bottleneck": 256, "view_hidden": 256, "view_depth": 3, "view_skip": 2,
        "weight_init": "he", "dilation_bias": 0.0, "dilation_mult": 0.0, "fine_loss_mult": 0.0,
        "coarse_loss_mult": 0.0, "charbonnier_loss_mult": 1.0,
        "antialiased_interlevel_loss_mult": 0.01, "distortion_loss_mult": 0.01,
        "grid_decay_loss_mult": 0.1, "batch_size": 8192, "lr_init": 1.25e-3, "lr_final": 1.25e-4,
        "lr_delay_steps": 20_000, "lr_delay_mult": 1e-8, "adam_beta2": 0.99, "adam_eps": 1e-15}),
    # Unbounded captures: contraction, and rays that reach to the horizon.
    ({"model": PROPOSALS, "unbounded": True}, {
        "lindisp": False, "contraction": True, "far": 1e6}),
    ({"model": "mipnerf360", "unbounded": True}, {
        "near": 0.2, "ray_warp": "reciprocal", "basis": "icosahedron", "max_deg": 12,
        "opaque_background": True}),
    ({"model": "zipnerf", "unbounded": True}, {
        "near": 0.0, "ray_warp": "power", "bg_range": (0.0, 1.0)}),
    # Scenes in a box: a smaller network and one proposal round.
    ({"model": "mipnerf360", "unbounded": False}, {
        "hidden": 256, "prop_rounds": 1, "prop_samples": 128, "adam_eps": 1e-8}),
    # Most pixels of a synthetic scene show its plain background, for which an empty scene has the
    # smallest absolute error; mip-NeRF 360 gets stuck there, so it learns by squared errors.
    ({"model": "mipnerf360", "dataset_name": SYNTHETIC}, {
        "fine_loss_mult": 1.0, "charbonnier_loss_mult": 0.0, "distortion_loss_mult": 0.0}),
    # Zip-NeRF's released Blender configuration decays the grids more, and keeps the contraction.
    ({"model": "zipnerf", "unbounded": False}, {"grid_decay_loss_mult": 10.0}),
    ({"model": "zipnerf", "dataset_name": SYNTHETIC}, {"contraction": True}),
    # Without an opaque background, dark surfaces of forward-facing photographs turn transparent
    # against black (fern by zipnerf: 24.1 dB with it, 23.1 dB and wrong distances without).
    ({"model": PROPOSALS, "dataset_name": "llff", "spherify": False}, {
        "opaque_background": True}),
    # NeRV compares tone-mapped radiance by squared errors.
    ({"model": "nerv"}, {
        "fine_loss_mult": 1.0, "charbonnier_loss_mult": 0.0, "visibility_loss_mult": 6.7}),

    # Ref-NeRF's released Blender configuration.
    ({"model": "mipnerf360", "predicted_normals": True}, {
        "orientation_loss_mult": 0.1, "predicted_normal_loss_mult": 3e-4}),

    # Preset "paper": the released configurations. Those of Blender sample each batch from a single
    # image, but Zip-NeRF's does not.
    ({"preset": "paper", "model": "mipnerf"}, {
        "batch_size": 4096, "max_steps": 1_000_000, "lr_init": 5e-4, "lr_final": 5e-6,
        "lr_delay_steps": 2500, "lr_delay_mult": 0.01}),
    ({"preset": "paper", "model": ("mipnerf", "mipnerf360"), "dataset_name": "blender"}, {
        "batching": "single_image"}),
    ({"preset": "paper", "model": "mipnerf360"}, {
        "batch_size": 16384, "max_steps": 250_000, "lr_init": 2e-3, "lr_final": 2e-5}),
    # NeRV's networks and batch. Its number of steps is not published and it has no proposals, so
    # schedule and samples are those of "gpu".
    ({"preset": "paper", "model": "nerv", "nerv_field": "mlp"}, {
        "hidden": 256, "depth": 8, "max_deg": 8, "batch_size": 512}),

    # Preset "laptop".
    ({"preset": "laptop", "model": "mipnerf"}, {
        "num_samples": 16, "hidden": 128, "depth": 4, "skip": 2, "view_hidden": 64, "max_deg": 10,
        "batch_size": 128, "micro_batch": 128, "max_steps": 7500, "lr_init": 6e-3,
        "lr_final": 3e-4, "lr_delay_steps": 100, "log_every": 100, "eval_every": 1500,
        "save_every": 500}),
    ({"preset": "laptop", "geometry": "mipnerf360"}, {
        "prop_samples": 32, "prop_hidden": 64, "prop_depth": 2, "num_samples": 16, "hidden": 128,
        "depth": 4, "skip": 2, "bottleneck": 64, "view_hidden": 64, "batch_size": 128,
        "micro_batch": 128, "max_steps": 7500, "lr_init": 6e-3, "lr_final": 3e-4,
        "lr_delay_steps": 100, "grad_max_norm": 0.0, "log_every": 100, "eval_every": 1500,
        "save_every": 500}),
    ({"preset": "laptop", "geometry": "zipnerf"}, {
        "prop_rounds": 1, "prop_samples": 48, "prop_finest": (128,), "prop_features": 2,
        "prop_hidden": 32, "pulse_width": (0.01,), "num_multisamples": 1, "grid_finest": 256,
        "grid_log2_size": 17, "hidden": 32, "bottleneck": 16, "view_hidden": 32, "view_depth": 2,
        "grid_decay_loss_mult": 0.0, "batch_size": 1024, "micro_batch": 1024,
        "max_steps": 1900, "lr_init": 1e-2, "lr_final": 5e-4, "lr_delay_steps": 50,
        "lr_delay_mult": 0.01, "log_every": 100, "eval_every": 950, "save_every": 475}),
    # `planning` fits these sizes and steps to the photographs and the time.
    ({"preset": "laptop", "model": "zipnerf"}, {
        "minutes": 5.0, "fine_loss_mult": 1.0, "charbonnier_loss_mult": 0.0}),
    # Photographs: points that several of them show tell the distances (flower: median error 0.5 %
    # of the distance with them, 1.4 % without). Larger tables gain there; synthetic scenes gain
    # from more numbers per entry (lego after five minutes: 30.0 dB with 2, 30.5 dB with 4).
    ({"preset": "laptop", "model": "zipnerf", "dataset_name": (*UNBOUNDED, "llff")}, {
        "grid_features": 2, "depth_points": 0.1}),
    # A small grid has no cells to spare for the space around a synthetic scene (demo: 25.8 dB
    # without contraction, 25.3 dB with it).
    ({"preset": "laptop", "model": "zipnerf", "dataset_name": SYNTHETIC}, {"contraction": False}),
    ({"preset": ("laptop", "debug")}, {
        "camera_lr_init": 1e-3, "camera_lr_final": 1e-4, "camera_lr_delay_steps": 50}),
    ({"preset": "laptop", "model": "nerv"}, {
        "visibility_features": 16, "visibility_hidden": 64, "visibility_depth": 3,
        "bounce_directions": 8, "max_steps": 6000, "eval_every": 1500, "save_every": 500}),
    ({"preset": "laptop", "model": "nerv", "nerv_field": "mlp"}, {
        "prop_rounds": 1, "max_deg": 8, "batch_size": 256, "micro_batch": 256, "max_steps": 9000,
        "geometry_share": 0.55, "visibility_share": 0.15}),

    # Preset "debug".
    ({"preset": "debug"}, {
        "num_samples": 12, "hidden": 24, "depth": 3, "skip": 2, "bottleneck": 16,
        "view_hidden": 16, "max_deg": 8, "prop_rounds": 1, "prop_samples": 12, "prop_hidden": 16,
        "prop_depth": 2, "prop_finest": (16,), "pulse_width": (0.03,), "grid_coarsest": 8,
        "grid_finest": 32, "grid_log2_size": 12, "visibility_finest": 16, "visibility_hidden": 16,
        "visibility_depth": 2, "bounce_directions": 4, "batch_size": 128, "max_steps": 40,
        "lr_init": 3e-3, "lr_final": 3e-4, "lr_delay_steps": 10, "grad_max_norm": 0.0,
        "log_every": 10, "eval_every": 20, "save_every": 20}),
]
