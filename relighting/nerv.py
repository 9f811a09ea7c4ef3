"""NeRV: geometry, reflectance and visibility under known lights."""

import argparse
from dataclasses import replace

import torch
from torch import nn

from models.build import hash_field, hash_proposals, head_config, mlp_field, mlp_proposal
from models.mipnerf360 import MipNeRF360
from ray_utils import expected_distance
from relighting import lights, shading

# Of a sample in its pixel: lighter ones are not shaded by themselves (NeRV).
MIN_SHADING_WEIGHT = 0.01

# To each side, in cells of the finest grid, for normals by differences: in four views of a trained
# scene they were 19.0 degrees wrong on average with 1, 17.7 with 2, 19.1 with 4.
NORMAL_STEP = 2

# How much wider, as a share of the box, Gaussians are when networks are asked for normals. Samples
# are longer than a pixel is wide: what the finest encodings do within them is not learnt.
NORMAL_WIDTH = 0.015

# Below it, the logarithm of a density says nothing.
MIN_DENSITY = 1e-10

# How far, as a share of the box, a ray from a surface starts above it: the density is some cells
# thick, and light would not leave it.
SECONDARY_RAY_OFFSET = 1 / 128


class NeRV(MipNeRF360):
    """NeRV (Srinivasan et al., CVPR 2021): geometry, reflectance and visibility under known light.

    Training has three stages. First the colours are those of a network that is told the view and
    where the light comes from on the whole: they give the geometry. Then visibility is learnt from
    that, too. Last, and in every picture from then on, colours are what surfaces reflect.
    """

    def build_fields(self, config, compute_dtype):
        make_field = hash_field if config.nerv_field == "hash" else mlp_field
        view = head_config(config)
        self.field = make_field(config, compute_dtype, view_inputs=6, **view)
        if config.nerv_field == "hash":
            self.proposals = hash_proposals(config, compute_dtype)
            self.pulse_widths = config.pulse_width
        else:
            self.proposals = nn.ModuleList([mlp_proposal(config, compute_dtype)])
        unseen = view | {"use_viewdirs": False, "rgb_padding": 0.0}
        seen = view | {"use_viewdirs": True, "rgb_padding": 0.0,
                       "bottleneck": config.visibility_features,
                       "view_hidden": config.visibility_hidden,
                       "view_depth": config.visibility_depth}
        coarser = argparse.Namespace(**vars(config) | {"grid_finest": config.visibility_finest})
        self.appearance = shading.SurfaceShading(
            make_field(config, compute_dtype, has_density=False, channels=4, **unseen),
            make_field(coarser, compute_dtype, has_density=False, channels=2, **seen),
            config.bounce_directions,
        )
        self.light_samples = config.light_samples
        self.set_rendering(config)
        lit_from = config.geometry_share + config.visibility_share
        self.stages = ((0.0, config.geometry_share), (config.geometry_share,
                       config.visibility_share), (lit_from, 1 - lit_from))
        self.cells = self.field.levels.resolutions[-1] if config.nerv_field == "hash" else None
        self.register_buffer("box", torch.tensor([[-1.0] * 3, [1.0] * 3]))
        # The share of the training that is done.
        self.register_buffer("progress", torch.zeros(()))

    def set_train_frac(self, train_frac):
        self.progress.fill_(train_frac)

    def set_rendering(self, config):
        self.shade_at, self.march_shadows = config.shade_at, config.march_shadows
        self.appearance.bounce_directions = config.bounce_directions

    def set_box(self, box):
        super().set_box(box)
        self.box.copy_(box)
        self.appearance.reach.copy_((box[1] - box[0]).norm())

    def forward(self, rays, train_frac=1.0, rng=None, ray_occupancy=None):
        """What each round sees, as in `MipNeRF360`; rays have `lights [..., K]`.

        Colours are tone-mapped radiance before the background. While training, train_frac tells the
        stage; pictures are those of the stage that was reached. The last round's `extras [..., C]`
        are quantities of what is seen, weighted by opacity: albedo, roughness, normals, visibility
        (of the lights), direct and indirect (radiance). Rays without lights see black shapes.
        """
        shape, rays = rays.shape, rays.flatten()
        stage = self.stage_at(train_frac if self.training else self.progress)
        dark, lit = rays.lights is None, stage == len(self.stages) - 1
        outputs = self.render_levels(
            rays, train_frac, rng, ray_occupancy, with_rgb=not (dark or lit))
        if lit and not dark:
            outputs[-1] = self.shade(outputs[-1], rays, rng)
        if self.training and stage > 0:
            error = self._visibility_error(outputs[-1], rays, rng)
            outputs[-1] = replace(
                outputs[-1], extras=outputs[-1].extras | {"visibility_error": error})
        return [o.map(lambda x: x.reshape((*shape, *x.shape[1:]))) for o in outputs]

    def stage(self):
        """The number of the stage that the training has reached."""
        return self.stage_at(self.progress)

    def is_shading(self):
        """Whether colours are those of surfaces under light."""
        return self.stage() == len(self.stages) - 1

    def compilable_fields(self, device):
        # Normals of networks are derivatives, and what is compiled can be differentiated only once.
        return [field for field in super().compilable_fields(device)
                if field is not self.field or field.num_multisamples]

    def proposal_field(self, level):
        return self.proposals[level % len(self.proposals)]

    def view_inputs(self, rays):
        return torch.cat([rays.viewdirs, lights.overall(rays.lights)[0]], dim=-1)

    def composite(self, samples, tdist, sdist, rays, rng):
        """A level's output: colours of the field are shares of the light that arrives."""
        output = super().composite(samples._replace(rgb=None), tdist, sdist, rays, rng)
        if samples.rgb is None:
            return output
        arriving = lights.overall(rays.lights)[1]
        radiance = arriving * (output.weights[..., None] * samples.rgb).sum(dim=-2)
        return replace(output, rgb=output.rgb + lights.tone_map(radiance))

    # Shading.

    def shade(self, output, rays, rng):
        """The last round's output with the colours of surfaces under the rays' lights."""
        few = self.sample_lights(rays.lights, rng)
        ray, t, share = self.shading_points(output)
        points = self.surface_points(*self.pixel_footprint(rays, ray, t), -rays.viewdirs[ray])
        shining, visible = few if self.training else rays.lights, None
        if self.march_shadows and not self.training:
            visible = self.march_shadow_rays(output, rays, shining)[ray]
        direct, visibility = self.appearance.direct(points, shining[ray], visible)

        def composited(values):
            total = values.new_zeros(len(rays), values.shape[-1])
            return total.index_add(0, ray, share[:, None] * values)

        extras = {"albedo": points.albedo, "roughness": points.roughness,
                  "normals": points.normals, "visibility": visibility, "direct": direct}
        extras = {name: composited(values) for name, values in extras.items()}
        extras["indirect"] = self.indirect_light(output, rays, ray.unique(), few, extras, rng)
        radiance = extras["direct"] + extras["indirect"]
        return replace(output, rgb=output.rgb + lights.tone_map(radiance), extras=extras)

    def shading_points(self, output):
        """Where rays are shaded: of M places the index of the ray, t, and the share in its colour.

        These are the samples that count, which stand for the others too; or one at the mean t.
        """
        acc, weights = output.acc, output.weights
        if self.shade_at == "surface":
            ray = (acc.detach() > MIN_SHADING_WEIGHT).nonzero()[:, 0]
            return ray, expected_distance(output)[ray], acc[ray]
        ray, sample = (weights.detach() > MIN_SHADING_WEIGHT).nonzero().unbind(-1)
        middle = 0.5 * (output.tdist[:, 1:] + output.tdist[:, :-1])
        weight = weights[ray, sample]
        counted = torch.zeros_like(acc).index_add(0, ray, weight)
        return ray, middle[ray, sample], weight * (acc / counted.clamp(min=MIN_SHADING_WEIGHT))[ray]

    def pixel_footprint(self, rays, ray, t):
        """Positions `[M, 3]` and variances `[M]` of what pixels see at t `[M]` of some rays."""
        positions = rays.origins[ray] + t[:, None] * rays.directions[ray]
        width = 0.5 * rays.radii[ray, 0] * (t if self.ray_shape == "cone" else 1)
        return positions, width**2

    def surface_points(self, positions, variances, outgoing):
        """`shading.Points` there."""
        return self.appearance.points(
            positions, variances, self._normals(positions, variances), outgoing)

    def _normals(self, positions, variances):
        """Normals `[M, 3]` of the density."""
        side = float((self.box[1] - self.box[0]).max())
        if not self.field.num_multisamples:
            variances = variances + (NORMAL_WIDTH * side) ** 2

        def log_density(means):
            covs = variances[:, None, None].expand(-1, means.shape[1], 3)
            return self.density(means, covs).clamp(min=MIN_DENSITY).log()

        if self.field.num_multisamples:
            step = NORMAL_STEP * side / self.cells
            return shading.finite_difference_normals(log_density, positions, step)
        return shading.gradient_normals(log_density, positions)

    def indirect_light(self, output, rays, ray, few_lights, seen, rng):
        """Light `[N, 3]` that reaches the mean surface of some rays by way of another one."""
        shift = self._random(torch.rand, (len(rays), 2), rays.origins, rng)
        acc = output.acc[ray, None]
        points = shading.Points(
            *self.pixel_footprint(rays, ray, expected_distance(output).detach()[ray]),
            normals=torch.nn.functional.normalize(seen["normals"][ray].detach(), dim=-1),
            outgoing=-rays.viewdirs[ray], albedo=seen["albedo"][ray] / acc,
            roughness=seen["roughness"][ray] / acc,
        )
        radiance = self.appearance.indirect(
            points, few_lights[ray], self.surface_points, None if shift is None else shift[ray])
        return torch.zeros_like(rays.origins).index_add(0, ray, acc * radiance)

    def march_shadow_rays(self, output, rays, shining):
        """The share `[N, K]` of each light that reaches the rays' mean surfaces, by the density."""
        surface, _, normals = self.expected_surface(output, rays)
        light = lights.incident(shining, surface)
        visible = torch.zeros_like(light.distance)
        facing = shading.dot(light.directions, normals[:, None])[..., 0] > 0
        ray, which = (facing & (output.acc > MIN_SHADING_WEIGHT)[:, None]).nonzero().unbind(-1)
        starts, unlit = surface + self.secondary_origin(normals), replace(rays, lights=None)
        # As many at once as there are rays in a chunk.
        for part in torch.arange(len(ray), device=ray.device).split(max(1, len(rays))):
            one, k = ray[part], which[part]
            seen = self.march(unlit[one], starts[one], light.directions[one, k], None)
            visible[one, k] = seen.of_light(light.distance[one, k])
        return visible

    def expected_surface(self, output, rays):
        """Positions `[N, 3]`, variances `[N]` and normals `[N, 3]` where rays end on average."""
        every = torch.arange(len(rays), device=rays.origins.device)
        positions, variances = self.pixel_footprint(rays, every, expected_distance(output).detach())
        with torch.no_grad():
            return positions, variances, self._normals(positions, variances)

    def secondary_origin(self, normals):
        """From a surface to where rays that leave it start."""
        return SECONDARY_RAY_OFFSET * (self.box[1] - self.box[0]).max() * normals

    def sample_lights(self, all_lights, rng):
        """A choice of many lights, evenly among their brightness, by chance while training."""
        count, few = len(all_lights.places), self.light_samples
        begin = self._random(torch.rand, (count, 1), all_lights.places, rng)
        if all_lights.places.shape[1] <= few:
            return all_lights
        begin = 0.5 if begin is None else begin
        steps = torch.arange(few, device=all_lights.places.device).expand(count, -1)
        return lights.importance_sample_lights(all_lights, (steps + begin) / few)

    # What the visibility field learns from.

    def _visibility_error(self, output, rays, rng):
        """How wrong `[N]` the visibility field is about a ray from what is seen, and a random one.

        The rays are marched through the density, which learns nothing from it (NeRV, section 4.3).
        """
        surface, variances, normals = self.expected_surface(output, rays)
        outward = self._random_directions(rays, rng)
        side = shading.dot(outward, normals)
        outward = torch.where(side < 0, -outward, outward)
        solid = (output.acc.detach() > 0.5).to(surface)
        low, high = self.box
        anywhere = self._random(torch.rand, rays.origins.shape, rays.origins, rng)
        anywhere = low + (high - low) * anywhere
        starts = surface + self.secondary_origin(normals)
        return (
            solid * self.visibility_error_along(rays, surface, starts, variances, outward, rng)
            + self.visibility_error_along(rays, anywhere, anywhere, variances,
                                self._random_directions(rays, rng), rng)
        )

    def _random_directions(self, rays, rng):
        return torch.nn.functional.normalize(
            self._random(torch.randn, rays.origins.shape, rays.origins, rng), dim=-1)

    def visibility_error_along(self, rays, positions, origins, variances, directions, rng):
        """The squared errors `[N]` of what is said to be seen at positions, in directions.

        Distances count in shares of the farthest, and by how much is stopped there.
        """
        truth = self.march(rays, origins, directions, rng)
        said = self.appearance.seen(positions, variances, directions[:, None])
        beside = (1 - truth.share) * (said.distance[:, 0] - truth.distance) / self.appearance.reach
        return (said.share[:, 0] - truth.share) ** 2 + beside**2

    @torch.no_grad()
    def march(self, rays, origins, directions, rng):
        """The `shading.Visibility [N]` of origins in directions, with the radii of `rays`."""
        away = replace(
            rays, origins=origins, directions=directions, viewdirs=directions, lights=None,
            near=torch.zeros_like(rays.near), far=self.distance_to_box(origins, directions))
        output = self.render_levels(away, 1.0, rng, None, with_rgb=False)[-1]
        middle = 0.5 * (output.tdist[:, 1:] + output.tdist[:, :-1])
        distance = (output.weights * middle).sum(dim=-1) / output.acc.clamp(min=1e-6)
        return shading.Visibility((1 - output.acc).clamp(min=0), distance)

    def distance_to_box(self, origins, directions):
        """How far `[N, 1]` it is from origins to the box's sides."""
        ends = torch.where(directions > 0, self.box[1], self.box[0]) - origins
        steps = ends / directions.where(directions.abs() > 1e-9, 1e-9)
        return steps.where(directions.abs() > 1e-9, torch.inf).amin(
            dim=-1, keepdim=True).clamp(min=1e-3)
