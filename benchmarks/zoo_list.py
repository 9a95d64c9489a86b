"""The networks of others that benchmarks/zoo.py tries: all of torchvision's classifiers and 120 of timm's networks.

Of timm, one or two of each family of convolutional networks that `timm.list_models()` names (release 1.0.31), the
smaller ones, chosen by their names before any was tried, among those that take 3×224×224. Transformers and networks of
attention, of recurrences or of multilayer perceptrons alone are left out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from torch import nn

from parelu.models.libraries import imported

LEFT_OUT = r"swin|vit_|maxvit"  # torchvision's transformers
# A line for each file of timm's that holds convolutional networks, in the order of their names there.
_FAMILIES = """
    gcresnext26ts gernet_s mobileone_s0 regnetz_b16 repvgg_a0 repvgg_d2se resnet32ts seresnet33ts
    convmixer_768_32
    convnext_atto convnext_tiny convnextv2_atto convnextv2_tiny
    cs3darknet_m cs3sedarknet_l cspdarknet53 cspresnet50 darknet53
    cspnext_tiny
    densenet121 densenetblur121d
    dla34 dla60_res2net
    dpn68 dpn92
    efficientnet_b0 efficientnet_b0_gn efficientnet_blur_b0 efficientnet_cc_b0_4e efficientnet_es efficientnet_lite0
    efficientnetv2_rw_t tf_efficientnetv2_b0 fbnetc_100 mixnet_s mnasnet_100
    mobilenet_edgetpu_100 mobilenetv1_100 mobilenetv2_100 spnasnet_100 tinynet_a
    fasternet_t0 fasternet_s
    fastvit_t8
    focalnet_tiny_srf
    ghostnet_100 ghostnetv2_100 ghostnetv3_100
    hardcorenas_a
    hgnet_tiny hgnetv2_b0
    hrnet_w18 hrnet_w18_small
    inception_next_atto inception_next_tiny
    inception_resnet_v2
    inception_v3
    inception_v4
    lcnetv2_base
    mambaout_femto
    convformer_s18 poolformer_s12 poolformerv2_s12
    fbnetv3_b lcnet_050 mobilenetv3_large_100 mobilenetv3_small_100 mobilenetv4_conv_aa_medium mobilenetv4_conv_small
    tf_mobilenetv3_large_minimal_100
    nasnetalarge
    dm_nfnet_f0 eca_nfnet_l0 nf_regnet_b0 nf_resnet50 nfnet_l0
    pnasnet5large
    rdnet_tiny
    regnetv_040 regnetx_002 regnety_002 regnetz_005
    repghostnet_100
    repvit_m0_9 repvit_m1
    res2net50_26w_4s res2next50
    resnest14d
    ecaresnet50t resnet10t resnet18 resnet18d resnet50 resnet50_gn resnetaa50d resnetblur50 resnetrs50
    seresnet50
    resnetv2_50 resnetv2_50d_gn resnetv2_50x1_bit
    rexnet_100 rexnetr_200
    selecsls42b selecsls60
    legacy_senet154 legacy_seresnet18
    skresnet18
    starnet_s1 starnet_s050
    tresnet_m tresnet_v2_l
    vgg11 vgg16_bn
    eca_vovnet39b ese_vovnet19b_dw vovnet39a
    legacy_xception
    xception41 xception65p
"""
TIMM = _FAMILIES.split()


def builders() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Name and builder of each network, of the libraries that can be imported."""
    with contextlib.suppress(ImportError):
        models = imported("torchvision.models")
        for name in models.list_models(module=models):
            if not re.match(LEFT_OUT, name):
                yield f"torchvision:{name}", lambda name=name: models.get_model(name, weights=None)
    with contextlib.suppress(ImportError):
        timm = imported("timm")
        for name in TIMM:
            yield f"timm:{name}", lambda name=name: timm.create_model(name)
