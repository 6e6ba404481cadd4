"""The phantom's anatomy as data: five views of a head, each a table of ellipses and the outline around them.

Coordinates are the head's own: x to the right, y down, the head about as large as [-1, 1] x [-1, 1].
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Ellipse(NamedTuple):
    """An ellipse in head coordinates; a mirrored one is drawn on both sides of the midline x = 0."""

    tissue: str
    x: float
    y: float
    half_width: float
    half_height: float
    tilt: float = 0.0  # degrees, clockwise on the screen
    mirrored: bool = False


def _ellipses(table: str) -> tuple[Ellipse, ...]:
    """Read lines of "name: tissue x y half_width half_height [tilt]; ..."; a tissue with a * is mirrored."""
    entries = [
        entry.split() for line in table.strip().splitlines() for entry in line.split(":")[1].split(";")
    ]
    return tuple(
        Ellipse(tissue.rstrip("*"), *map(float, numbers))._replace(mirrored=tissue.endswith("*"))
        for tissue, *numbers in entries
    )


def _profile(table: str) -> np.ndarray:
    """Read the lines "y: ...", "left: ..." and "right: ..." into an array (3, points)."""
    return np.array([line.split(":")[1].split() for line in table.strip().splitlines()], dtype=np.float32)


@dataclass(frozen=True)
class View:
    """What one plane shows, as data: outlines, structures in painting order, and where lesions sit."""

    outline: tuple[Ellipse, ...]  # skin
    cavity: tuple[Ellipse, ...]  # inner skull; the brain lies within
    inside: tuple[Ellipse, ...]  # painted over the brain
    glioma: tuple[Ellipse, ...]  # where a glioma's centre is drawn from
    outside: tuple[Ellipse, ...] = ()  # painted over the face, before the skull
    profile: np.ndarray | None = None  # face and neck
    fissures: tuple[tuple[float, float], ...] = ()  # y ranges where the hemispheres part
    gyri: int = 22  # folds once around a hemisphere
    fold_centre: tuple[float, float] = (0.3, 0.0)  # where folds run to; in both hemispheres if x > 0
    egg: float = 0.0  # how much wider the head is at large y
    sella: tuple[float, float] = (0.0, 0.0)
    meningioma_angles: tuple[float, float] = (-180.0, 180.0)  # degrees about the origin, -90 is up


VIEWS = {
    "axial_high": View(
        outline=_ellipses("head: fat 0 0 .70 .84"),
        cavity=_ellipses("cavity: csf 0 0 .58 .72"),
        inside=_ellipses("centrum semiovale: white* .24 0 .10 .36"),
        glioma=_ellipses("zone: any* .30 0 .10 .32"),
        fissures=((-1.0, 1.0),),
        egg=0.08,
    ),
    "axial_mid": View(
        outline=_ellipses("head: fat 0 0 .75 .92"),
        cavity=_ellipses("cavity: csf 0 0 .64 .80"),
        inside=_ellipses("""
            deep white matter: white 0 -.03 .34 .44
            putamen, caudate: grey* .27 -.04 .06 .19 -14; grey* .16 -.20 .05 .11 -20
            thalamus: grey* .11 .10 .08 .13 -25
            insula, Sylvian fissure: csf* .43 -.02 .02 .19 -8; csf* .51 -.08 .10 .018 12
            frontal horns, body: ventricle* .085 -.21 .045 .15 -18; ventricle* .03 -.05 .03 .12
            occipital horns: ventricle* .20 .27 .05 .17 -32
            septum, third ventricle: white 0 -.12 .008 .16; ventricle 0 .09 .016 .09
            cistern, sagittal sinus: csf 0 .24 .07 .03; vessel 0 .78 .045 .035
        """),
        glioma=_ellipses("zone: any* .33 0 .10 .38"),
        fissures=((-1.0, -0.40), (0.36, 1.0)),
        egg=0.08,
    ),
    "axial_low": View(
        outline=_ellipses("head: fat 0 .02 .72 .88"),
        cavity=_ellipses("fossae: csf* .32 -.06 .28 .27 -15; csf 0 .08 .25 .30; csf 0 .38 .54 .38"),
        inside=_ellipses("""
            suprasellar cistern, petrous ridges: csf 0 -.04 .15 .14; bone* .42 .14 .19 .035 22
            cerebellum, vermis: cerebellum* .27 .43 .235 .25 -8; cerebellum 0 .48 .12 .22
            pons, fourth ventricle: white 0 .16 .15 .13; ventricle 0 .31 .065 .035
            gland, arteries: pituitary 0 -.13 .028 .02; vessel* .13 -.12 .022 .03; vessel 0 .02 .018 .018
        """),
        outside=_ellipses("""
            temporal muscle, sphenoid wing: muscle* .56 -.28 .06 .20 -20; marrow* .44 -.36 .06 .11 40
            orbit, optic nerve: fat* .30 -.57 .15 .25 -14; muscle* .26 -.50 .02 .17 -10
            eye, vitreous, lens: grey* .31 -.68 .125 .125; eye* .31 -.68 .10 .10; grey* .31 -.77 .05 .02
            nose, turbinates, septum: air 0 -.56 .11 .26; muscle* .045 -.58 .022 .17; muscle 0 -.56 .009 .24
        """),
        glioma=_ellipses("temporal lobe, cerebellum: any* .33 -.05 .08 .10; any* .2 .42 .1 .1"),
        gyri=12,
        fold_centre=(0.32, -0.06),
        egg=0.06,
        sella=(0.0, -0.12),
        meningioma_angles=(-20.0, 200.0),
    ),
    "coronal": View(
        outline=_ellipses("head: fat 0 -.22 .68 .70"),
        cavity=_ellipses("cavity, middle fossae: csf 0 -.27 .575 .54; csf* .33 .03 .245 .22 12"),
        inside=_ellipses("""
            deep white matter, putamen: white 0 -.26 .25 .15; grey* .22 -.14 .055 .11 14
            caudate, thalamus: grey* .15 -.27 .04 .07 18; grey* .08 -.10 .06 .08
            Sylvian fissure, insula: csf* .43 -.06 .11 .02 -14; csf* .35 -.10 .018 .09 6
            lateral ventricles, horns: ventricle* .085 -.30 .04 .11 38; ventricle* .30 .06 .035 .015 20
            third ventricle, septum: ventricle 0 -.14 .018 .10; white 0 -.34 .008 .09
            cistern, chiasm: csf 0 .10 .13 .06; white 0 .06 .09 .014
            gland, carotids: pituitary 0 .165 .055 .025; vessel* .11 .16 .025 .025
            sagittal sinus: vessel 0 -.79 .035 .03
        """),
        outside=_ellipses("""
            skull base, mandible: bone 0 .22 .50 .14; bone* .385 .56 .025 .24 6; marrow* .385 .58 .010 .20 6
            masseter, pterygoids: muscle* .46 .47 .07 .24 6; muscle* .29 .50 .085 .17 -12
            sphenoid sinus, nose: air 0 .28 .12 .09; air 0 .50 .085 .14; muscle* .035 .50 .018 .10
            palate, tongue: bone 0 .66 .21 .022; muscle 0 .82 .24 .14
        """),
        glioma=_ellipses("hemisphere, temporal lobe: any* .32 -.32 .10 .16; any* .33 .03 .05 .05"),
        profile=_profile("""
            y:     -.05  .10  .30  .50  .70  .85 1.00 1.40
            left:  -.61 -.62 -.60 -.56 -.52 -.46 -.44 -.56
            right:  .61  .62  .60  .56  .52  .46  .44  .56
        """),
        fissures=((-1.0, -0.44),),
        gyri=20,
        fold_centre=(0.25, -0.2),
        sella=(0.0, 0.15),
        meningioma_angles=(-190.0, 10.0),
    ),
    "sagittal": View(
        outline=_ellipses("head: fat .10 -.22 .80 .68"),
        cavity=_ellipses("cavity, posterior fossa: csf .10 -.25 .69 .53; csf .40 .10 .36 .27 12"),
        inside=_ellipses("""
            cingulate gyrus: grey .04 -.21 .41 .25 -4; csf .04 -.20 .355 .205 -4
            corpus callosum, an arch: callosum .04 -.195 .345 .195 -4; grey .05 -.12 .29 .19 -4
            ventricle, thalamus: ventricle .02 -.20 .24 .07 -4; grey .09 -.12 .14 .085 8
            cisterns, foramen magnum: csf .10 .09 .20 .15 35; csf .225 .36 .065 .20 -5
            cerebellum: cerebellum .46 .13 .22 .20 10; white .43 .11 .10 .035 -15; white .50 .13 .035 .11 -25
            fourth ventricle, midbrain: ventricle .275 .13 .03 .10 18; white .14 .02 .065 .11 -25
            pons, medulla: white .165 .15 .085 .11 -8; white .22 .40 .042 .24 -5
            gland: pituitary -.12 .19 .04 .022
        """),
        outside=_ellipses("""
            nape: fat .62 .62 .12 .42 -4; muscle .47 .68 .11 .36 -6
            skull base, clivus: bone -.02 .25 .34 .10 16; marrow .05 .24 .05 .12 -30
            sphenoid and frontal sinus: air -.12 .35 .085 .06; air -.63 -.14 .035 .09 8
            nose, turbinates: air -.43 .30 .24 .12 6; muscle -.42 .27 .17 .028 8; muscle -.42 .36 .18 .03 5
            palate, pharynx: bone -.44 .455 .24 .02 3; air -.08 .60 .04 .36 -6
            tongue: muscle -.38 .65 .24 .16 8
            chin: bone -.62 .82 .045 .10 10; marrow -.62 .82 .022 .07 10
            vertebrae: marrow .085 .50 .065 .055; marrow .10 .65 .065 .055; marrow .11 .80 .065 .055
            vertebra: marrow .12 .95 .065 .055
            spinal canal, cord: csf .25 .80 .065 .60 -4; white .25 .80 .035 .60 -4
        """),
        glioma=_ellipses("frontal, parietal lobe: any -.25 -.32 .12 .12; any .42 -.35 .14 .12"),
        profile=_profile("""
            y:     -.20 -.08  .02  .10  .28  .36  .41  .48  .56  .61  .67  .80  .92 1.02 1.40
            left:  -.65 -.68 -.66 -.70 -.86 -.85 -.72 -.74 -.73 -.68 -.71 -.69 -.60 -.28 -.20
            right:  .84  .83  .80  .77  .71  .69  .67  .65  .64  .64  .64  .64  .65  .67  .74
        """),
        gyri=26,
        fold_centre=(-0.001, -0.12),
        sella=(-0.12, 0.17),
        meningioma_angles=(-175.0, 0.0),
    ),
}
