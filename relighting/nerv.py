"""NeRV: geometry, reflectance and visibility from images under known lights."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fields.base import Field, FieldOutput
from fields.occupancy import RayOccupancy
from models.build import hash_field, hash_proposals, head_config, mlp_field, mlp_proposal
from models.mipnerf360 import MipNeRF360
from ray_utils import expected_distance, footprint_radius
from relighting import lights, shading
from relighting.components import component_images
from relighting.lights import Lights
from stepfun import midpoints
from structures import Rays, RenderOutput, Shading

# Samples below this compositing weight are not shaded individually (NeRV).
MIN_SHADING_WEIGHT = 0.01

# Opacities that expected distances are divided by: of surfaces, and of secondary rays.
MIN_SURFACE_OPACITY = 1e-3
MIN_MARCHED_OPACITY = 1e-6

# Half-width of finite differences for normals, in cells of the finest grid: in four views of a
# trained scene the mean error was 19.0 degrees with 1, 17.7 with 2, 19.1 with 4.
NORMAL_STEP = 2

# Standard deviation, as a fraction of the box, by which Gaussians are widened when MLPs are queried
# for normals. Intervals are longer than a pixel is wide, so training leaves the finest scales of
# the encoding arbitrary.
NORMAL_WIDTH = 0.015

# Densities are clamped to this before the logarithm.
MIN_DENSITY = 1e-10

# Distance, as a fraction of the box, from a surface to the origin of its secondary rays: the
# density of a surface is some cells thick and would occlude itself.
SECONDARY_RAY_OFFSET = 1 / 128


class NeRV(MipNeRF360):
    """NeRV (Srinivasan et al., CVPR 2021): geometry, reflectance and visibility under known light.

    Stage 1 fits geometry with a colour network conditioned on the view and the mean light
    direction. Stage 2 adds the visibility field, supervised by that geometry. Stage 3, and all
    rendering after it, shades surfaces with the BRDF.
    """

    def build_fields(self, config, compute_dtype: torch.dtype):
        is_hash = config.nerv_field == "hash"
        make_field = hash_field if is_hash else mlp_field
        head = head_config(config)
        self.field = make_field(config, compute_dtype, replace(head, view_inputs=6))
        if is_hash:
            self.proposals = hash_proposals(config, compute_dtype)
            self.pulse_widths = config.pulse_width
        else:
            self.proposals = nn.ModuleList([mlp_proposal(config, compute_dtype)])
        reflectance_head = replace(head, use_viewdirs=False, rgb_padding=0.0, channels=4)
        visibility_head = replace(
            head, use_viewdirs=True, rgb_padding=0.0, channels=2,
            bottleneck=config.visibility_features, view_hidden=config.visibility_hidden,
            view_depth=config.visibility_depth)
        resolution = {"finest": config.visibility_finest} if is_hash else {}
        self.appearance = shading.SurfaceShading(
            make_field(config, compute_dtype, reflectance_head, has_density=False),
            make_field(config, compute_dtype, visibility_head, has_density=False, **resolution),
        )
        self.light_samples = config.light_samples
        self.shading = Shading.from_config(config)
        shading_start = config.geometry_share + config.visibility_share
        self.stages = ((0.0, config.geometry_share),
                       (config.geometry_share, config.visibility_share),
                       (shading_start, 1 - shading_start))
        self.finest_resolution = self.field.levels.resolutions[-1] if is_hash else None
        self.register_buffer("box", torch.tensor([[-1.0] * 3, [1.0] * 3]))
        # Fraction of training done: images are those of the stage that training has reached.
        self.register_buffer("progress", torch.zeros(()))

    def set_train_frac(self, train_frac: float):
        self.progress.fill_(train_frac)

    def set_box(self, box: Tensor):
        super().set_box(box)
        self.box.copy_(box)
        self.appearance.reach.copy_((box[1] - box[0]).norm())

    def forward(self, rays: Rays, train_frac: float = 1.0, rng=None,
                ray_occupancy: RayOccupancy | None = None, shading: Shading | None = None,
                density_normals: bool = False) -> list[RenderOutput]:
        """Render as `RayModel.forward` does; rays have `lights [..., K]`, else surfaces are black.

        Radiance is tone-mapped before the background is added. The stage follows from `train_frac`
        in training, and otherwise from the last call of `set_train_frac`. In stage 3 `extras` of
        the last round holds `components.COMPONENTS [..., C]`, each times the opacity; "visibility"
        is the lights', "direct" and "indirect" are radiance.
        """
        shape, rays = rays.shape, rays.flatten()
        stage = self.stage_at(train_frac if self.training else self.progress)
        is_lit, is_shading = rays.lights is not None, stage == len(self.stages) - 1
        outputs = self.render_levels(
            rays, train_frac, rng, ray_occupancy, density_normals,
            with_rgb=is_lit and not is_shading)
        if is_lit and is_shading:
            outputs[-1] = self.shade(outputs[-1], rays, rng, shading or self.shading)
        if self.training and stage > 0:
            error = self.visibility_error(outputs[-1], rays, rng)
            outputs[-1] = replace(outputs[-1], visibility_error=error)
        return [o.map(lambda x: x.reshape((*shape, *x.shape[1:]))) for o in outputs]

    def stage(self) -> int:
        """Index of the stage that training has reached."""
        return self.stage_at(self.progress)

    def is_shading(self) -> bool:
        """Whether training has reached the stage that shades surfaces."""
        return self.stage() == len(self.stages) - 1

    def extra_images(self, output: RenderOutput) -> dict:
        return component_images(output)

    def compilable_fields(self, device: torch.device) -> list[Field]:
        # An MLP's normals are derivatives, and compiled code cannot be differentiated twice.
        return [field for field in super().compilable_fields(device)
                if field is not self.field or field.num_multisamples]

    def reference_params(self) -> dict[str, Tensor]:
        raise ValueError("the authors of NeRV released no code whose weights could be loaded")

    def proposal_field(self, level: int) -> Field:
        return self.proposals[level % len(self.proposals)]

    def view_inputs(self, rays: Rays) -> Tensor:
        """View and mean light direction, `[..., 6]`."""
        return torch.cat([rays.viewdirs, lights.mean_light(rays.lights).direction], dim=-1)

    def composite(self, samples: FieldOutput, tdist: Tensor, sdist: Tensor, rays: Rays,
                  rng) -> RenderOutput:
        """Composite a level, whose field's colours are ratios of the total incident radiance."""
        output = super().composite(samples._replace(rgb=None), tdist, sdist, rays, rng)
        if samples.rgb is None:
            return output
        total = lights.mean_light(rays.lights).radiance
        radiance = total * (output.weights[..., None] * samples.rgb).sum(dim=-2)
        return replace(output, rgb=output.rgb + lights.tone_map(radiance))

    # Shading.

    def shade(self, output: RenderOutput, rays: Rays, rng, options: Shading) -> RenderOutput:
        """Shade the surfaces of the last round's output under the rays' lights."""
        sampled = self.sample_lights(rays.lights, rng)
        ray, t, weight = self.shading_points(output, options.shade_at)
        points = self.surface_points(*self.pixel_footprint(rays, ray, t), -rays.viewdirs[ray])
        direct_lights, light_visibility = sampled if self.training else rays.lights, None
        if options.march_shadows and not self.training:
            light_visibility = self.march_shadow_rays(output, rays, direct_lights)[ray]
        direct, visibility = self.appearance.direct_light(
            points, direct_lights[ray], light_visibility)

        def composite(values):
            total = values.new_zeros(len(rays), values.shape[-1])
            return total.index_add(0, ray, weight[:, None] * values)

        extras = {"albedo": points.albedo, "roughness": points.roughness,
                  "shading_normals": points.normals, "visibility": visibility, "direct": direct}
        extras = {name: composite(values) for name, values in extras.items()}
        extras["indirect"] = self.indirect_light(
            output, rays, ray.unique(), sampled, extras, rng, options.bounce_directions)
        radiance = extras["direct"] + extras["indirect"]
        return replace(output, rgb=output.rgb + lights.tone_map(radiance), extras=extras)

    def shading_points(self, output: RenderOutput,
                       shade_at: str) -> tuple[Tensor, Tensor, Tensor]:
        """The M points at which rays are shaded: ray index, t and compositing weight, each `[M]`.

        "samples": all samples of sufficient weight, scaled so that their weights add up to the
        ray's opacity; "surface": one point per ray, at the expected distance.
        """
        acc, weights = output.acc, output.weights
        if shade_at == "surface":
            ray = (acc.detach() > MIN_SHADING_WEIGHT).nonzero()[:, 0]
            return ray, surface_distance(output)[ray], acc[ray]
        ray, sample = (weights.detach() > MIN_SHADING_WEIGHT).nonzero().unbind(-1)
        weight = weights[ray, sample]
        shaded = torch.zeros_like(acc).index_add(0, ray, weight)
        scale = (acc / shaded.clamp(min=MIN_SHADING_WEIGHT))[ray]
        return ray, midpoints(output.tdist)[ray, sample], weight * scale

    def pixel_footprint(self, rays: Rays, ray: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean `[M, 3]` and variance `[M]` of the pixels' isotropic footprints.

        ray: index `[M]` into `rays`; t: `[M]`, where along these rays.
        """
        positions = rays.origins[ray] + t[:, None] * rays.directions[ray]
        std = 0.5 * footprint_radius(rays.radii[ray, 0], t, self.ray_shape)
        return positions, std**2

    def surface_points(self, positions: Tensor, variances: Tensor,
                       view_dirs: Tensor) -> shading.SurfacePoints:
        """Normals and reflectance at positions `[M, 3]`."""
        return self.appearance.surface_points(
            positions, variances, self.normals(positions, variances), view_dirs)

    def normals(self, positions: Tensor, variances: Tensor) -> Tensor:
        """Normals `[M, 3]` of the density, unit where it varies."""
        side = (self.box[1] - self.box[0]).max()
        if not self.field.num_multisamples:
            variances = variances + (NORMAL_WIDTH * side) ** 2

        def log_density(means):
            covs = variances[:, None, None].expand(-1, means.shape[1], 3)
            return self.density(means, covs).clamp(min=MIN_DENSITY).log()

        if self.field.num_multisamples:
            step = NORMAL_STEP * side / self.finest_resolution
            return shading.finite_difference_normals(log_density, positions, step)
        return shading.gradient_normals(log_density, positions)

    def indirect_light(self, output: RenderOutput, rays: Rays, ray: Tensor, sampled: Lights,
                       components: dict, rng, num_directions: int) -> Tensor:
        """One-bounce light `[N, 3]` at the expected surface of some rays, times their opacity.

        ray: indices of these rays; components: composited reflectance and normals of all N.
        """
        shift = self._random(torch.rand, (len(rays), 2), rays.origins, rng)
        acc = output.acc[ray, None]
        points = shading.SurfacePoints(
            *self.pixel_footprint(rays, ray, surface_distance(output).detach()[ray]),
            normals=normalize(components["shading_normals"][ray].detach(), dim=-1),
            view_dirs=-rays.viewdirs[ray], albedo=components["albedo"][ray] / acc,
            roughness=components["roughness"][ray] / acc,
        )
        radiance = self.appearance.indirect_light(
            points, sampled[ray], self.surface_points, num_directions,
            None if shift is None else shift[ray])
        return torch.zeros_like(rays.origins).index_add(0, ray, acc * radiance)

    def march_shadow_rays(self, output: RenderOutput, rays: Rays, all_lights: Lights) -> Tensor:
        """Visibility `[N, K]` of lights from the rays' expected surfaces, through the density."""
        surface, _, normals = self.expected_surface(output, rays)
        light = lights.incident(all_lights, surface)
        visible = torch.zeros_like(light.distance)
        facing = shading.dot(light.directions, normals[:, None])[..., 0] > 0
        hit = (output.acc > MIN_SHADING_WEIGHT)[:, None]
        ray, light_index = (facing & hit).nonzero().unbind(-1)
        origins, unlit = self.secondary_origin(surface, normals), replace(rays, lights=None)
        # As many shadow rays at once as there are camera rays in a chunk.
        for part in torch.arange(len(ray), device=ray.device).split(max(1, len(rays))):
            i, k = ray[part], light_index[part]
            marched = self.march(unlit[i], origins[i], light.directions[i, k], None)
            visible[i, k] = marched.of_light_at(light.distance[i, k])
        return visible

    def expected_surface(self, output: RenderOutput,
                         rays: Rays) -> tuple[Tensor, Tensor, Tensor]:
        """Positions `[N, 3]`, their variances `[N]` and normals `[N, 3]` of the rays' surfaces.

        A ray's surface is at its expected distance.
        """
        t = surface_distance(output).detach()
        positions, variances = self.pixel_footprint(rays, torch.arange(len(t), device=t.device), t)
        with torch.no_grad():
            return positions, variances, self.normals(positions, variances)

    def secondary_origin(self, surface: Tensor, normals: Tensor) -> Tensor:
        """Origins `[N, 3]` of secondary rays, lifted off the surface."""
        return surface + SECONDARY_RAY_OFFSET * (self.box[1] - self.box[0]).max() * normals

    def sample_lights(self, all_lights: Lights, rng) -> Lights:
        """At most `light_samples` of the lights `[N, K]`: stratified by luminance, jittered in
        training."""
        count, num_samples = len(all_lights.places), self.light_samples
        jitter = self._random(torch.rand, (count, 1), all_lights.places, rng)
        if all_lights.places.shape[1] <= num_samples:
            return all_lights
        jitter = 0.5 if jitter is None else jitter
        strata = torch.arange(num_samples, device=all_lights.places.device).expand(count, -1)
        return lights.importance_sample_lights(all_lights, (strata + jitter) / num_samples)

    # Supervision of the visibility field.

    def visibility_error(self, output: RenderOutput, rays: Rays, rng) -> Tensor:
        """Error `[N]` of the visibility field along two rays, marched without gradient.

        One leaves the expected surface, one a random point of the box (NeRV, section 4.3).
        """
        surface, variances, normals = self.expected_surface(output, rays)
        outward = self._random_directions(rays, rng)
        side = shading.dot(outward, normals)
        outward = torch.where(side < 0, -outward, outward)
        solid = (output.acc.detach() > 0.5).to(surface)
        low, high = self.box
        anywhere = self._random(torch.rand, rays.origins.shape, rays.origins, rng)
        anywhere = low + (high - low) * anywhere
        origins = self.secondary_origin(surface, normals)
        return (
            solid * self.visibility_error_along(rays, surface, origins, variances, outward, rng)
            + self.visibility_error_along(rays, anywhere, anywhere, variances,
                                          self._random_directions(rays, rng), rng)
        )

    def _random_directions(self, rays, rng):
        return normalize(
            self._random(torch.randn, rays.origins.shape, rays.origins, rng), dim=-1)

    def visibility_error_along(self, rays: Rays, positions: Tensor, origins: Tensor,
                               variances: Tensor, directions: Tensor, rng) -> Tensor:
        """Squared error `[N]` of predicted visibility and distance.

        positions: where the field is queried; origins: where the rays of `directions` start.
        Distances are in units of the box's diagonal and weighted by the marched opacity.
        """
        marched = self.march(rays, origins, directions, rng)
        predicted = self.appearance.query_visibility(positions, variances, directions[:, None])
        opacity, distance = 1 - marched.transmittance, predicted.distance[:, 0]
        distance_error = opacity * (distance - marched.distance) / self.appearance.reach
        return (predicted.transmittance[:, 0] - marched.transmittance) ** 2 + distance_error**2

    @torch.no_grad()
    def march(self, rays: Rays, origins: Tensor, directions: Tensor,
              rng) -> shading.Visibility:
        """Render the `Visibility [N]` from origins along directions, with the radii of `rays`."""
        secondary = replace(
            rays, origins=origins, directions=directions, viewdirs=directions, lights=None,
            near=torch.zeros_like(rays.near), far=self.distance_to_box(origins, directions))
        output = self.render_levels(secondary, 1.0, rng, None, with_rgb=False)[-1]
        distance = expected_distance(
            output.weights, output.acc, output.tdist, MIN_MARCHED_OPACITY)
        return shading.Visibility((1 - output.acc).clamp(min=0), distance)

    def distance_to_box(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Distance `[N, 1]` from origins `[N, 3]` inside the box to its boundary.

        directions: `[N, 3]`; the distance is in multiples of their length, at least 1e-3.
        """
        offsets = torch.where(directions > 0, self.box[1], self.box[0]) - origins
        steps = offsets / directions.where(directions.abs() > 1e-9, 1e-9)
        return steps.where(directions.abs() > 1e-9, torch.inf).amin(
            dim=-1, keepdim=True).clamp(min=1e-3)


def surface_distance(output: RenderOutput) -> Tensor:
    """Expected distance `[...]` in t of a level, with gradient; the far end for empty rays."""
    return expected_distance(output.weights, output.acc, output.tdist, MIN_SURFACE_OPACITY,
                             empty=output.tdist[..., -1])
