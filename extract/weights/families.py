"""How self-supervised projects write checkpoints: a table of where in the file the encoders and heads are.

A file's contents are viewed flat: the keys of nested dictionaries are joined by "/", and what DataParallel
and torch.compile add to names (`module.`, `_orig_mod.`) is removed, so DINO's file contains
`teacher/backbone.cls_token`. Each family maps prefixes of such names to the model's prefixes. Names that
match no prefix (optimizers, projectors, the other encoder) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featbench.extract.weights.key_mappings import HEADS


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way of writing checkpoints."""

    name: str
    branches: Mapping[str, Mapping[str, str]]
    """The encoders that a file may contain, the default one first. For each: prefixes of names in the file, and what
    replaces them in the model's names. The longest prefix that matches counts."""

    marks: tuple[str, ...] = ()
    """Patterns; each must match the start of some name."""

    source: str = ""


def _vissl(where: str) -> dict[str, str]:
    return {f"{where}trunk/": "", f"{where}heads/": HEADS}


FAMILIES: tuple[Family, ...] = (
    Family(
        name="VISSL, DINO",
        branches={
            "teacher": {
                "loss/momentum_teacher.module.trunk.": "",
                "loss/momentum_teacher.module.heads.": HEADS,
                "loss/momentum_teacher.trunk.": "",
                "loss/momentum_teacher.heads.": HEADS,
            },
            "student": _vissl("classy_state_dict/base_model/model/"),
        },
        marks=(r"loss/momentum_teacher\.",),
        source="vissl/losses/dino_loss.py",
    ),
    Family(
        name="VISSL",
        branches={"model": _vissl("classy_state_dict/base_model/model/")},
        source="vissl/utils/checkpoint.py",
    ),
    Family(
        name="VISSL, converted",
        branches={"model": {"model_state_dict/trunk.": "", "model_state_dict/heads.": HEADS, "model_state_dict/": ""}},
        source="vissl/extra_scripts",
    ),
    Family(
        name="MoCo v3",
        branches={
            "base": {"state_dict/base_encoder.": ""},
            "momentum": {"state_dict/momentum_encoder.": ""},
        },
        marks=(r"state_dict/base_encoder\.",),
        source="facebookresearch/moco-v3",
    ),
    Family(
        name="MoCo",
        branches={
            "query": {
                "state_dict/encoder_q.": "",
                "state_dict/encoder_q.fc.": f"{HEADS}0.clf.",
                "state_dict/encoder_q.fc.weight": f"{HEADS}0.clf.0.weight",
                "state_dict/encoder_q.fc.bias": f"{HEADS}0.clf.0.bias",
            },
            "key": {
                "state_dict/encoder_k.": "",
                "state_dict/encoder_k.fc.": f"{HEADS}0.clf.",
                "state_dict/encoder_k.fc.weight": f"{HEADS}0.clf.0.weight",
                "state_dict/encoder_k.fc.bias": f"{HEADS}0.clf.0.bias",
            },
        },
        marks=(r"state_dict/encoder_[qk]\.",),
        source="facebookresearch/moco, v1 and v2; the head is one mlp",
    ),
    Family(
        name="DINOv2",
        branches={"teacher": {"teacher/backbone.": ""}, "student": {"student/backbone.": ""}},
        marks=(r"(teacher|student)/(dino_head|ibot_head)\.",),
        source="facebookresearch/dinov2, dinov3: training checkpoints",
    ),
    Family(
        name="iBOT",
        branches={
            "teacher": {"teacher/backbone.": "", "teacher/head.": f"{HEADS}0."},
            "student": {"student/backbone.": "", "student/head.": f"{HEADS}0."},
        },
        marks=(r"(teacher|student)/(backbone\.masked_embed|head\.(last_layer2|mlp2))",),
        source="bytedance/ibot",
    ),
    Family(
        name="DINO",
        branches={
            "teacher": {
                "teacher/backbone.": "",
                "teacher/head.": f"{HEADS}0.",
                "teacher/head.last_layer.": f"{HEADS}0.prototypes0.",
            },
            "student": {
                "student/backbone.": "",
                "student/head.": f"{HEADS}0.",
                "student/head.last_layer.": f"{HEADS}0.prototypes0.",
            },
        },
        source="facebookresearch/dino",
    ),
    Family(
        name="SimSiam",
        branches={"encoder": {"state_dict/encoder.": "", "state_dict/encoder.fc.": "/projector/"}},
        marks=(r"state_dict/encoder\.fc\.\d", r"state_dict/predictor\."),
        source="facebookresearch/simsiam",
    ),
    Family(
        name="SimCLR",
        branches={"backbone": {"state_dict/backbone.": "", "state_dict/backbone.fc.": f"{HEADS}0.clf."}},
        marks=(r"state_dict/backbone\.fc\.\d",),
        source="sthalles/SimCLR; the head is one mlp",
    ),
    Family(
        name="SimCLR",
        branches={"encoder": {"encoder.": "", "projector.": f"{HEADS}0.clf."}},
        marks=(r"encoder\.", r"projector\."),
        source="spijkervet/SimCLR; the head is one mlp",
    ),
    Family(
        name="BYOL",
        branches={"online": {"online_encoder.net.": ""}, "target": {"target_encoder.net.": ""}},
        marks=(r"(online|target)_encoder\.net\.",),
        source="lucidrains/byol-pytorch",
    ),
    Family(
        name="BYOL",
        branches={"online": {"model/online_network.encoder.": ""}, "target": {"model/target_network.encoder.": ""}},
        marks=(r"model/(online|target)_network\.encoder\.",),
        source="yaox12/BYOL-PyTorch",
    ),
    Family(
        name="Barlow Twins",
        branches={"backbone": {"model/backbone.": "", "model/projector.": f"{HEADS}0.clf."}},
        marks=(r"model/backbone\.", r"model/projector\.", r"model/bn\."),
        source="facebookresearch/barlowtwins; the head is one mlp",
    ),
    Family(
        name="VICReg",
        branches={"backbone": {"model/backbone.": ""}},
        marks=(r"model/backbone\.", r"model/projector\."),
        source="facebookresearch/vicreg",
    ),
    Family(
        name="SwAV or DeepCluster",
        branches={
            "model": {
                f"{where}{name}": target
                for where in ("state_dict/", "")
                for name, target in {
                    "": "",
                    "projection_head.": f"{HEADS}0.projection_head.",
                    "prototypes.": f"{HEADS}0.prototypes0.",
                    "prototypes.prototypes": f"{HEADS}0.prototypes",
                }.items()
            }
        },
        marks=(r"(state_dict/)?projection_head\.", r"(state_dict/)?prototypes\."),
        source="facebookresearch/swav",
    ),
    Family(
        name="CLIP or SigLIP",
        branches={
            "image": {
                f"{where}{name}": target
                for where in ("state_dict/", "")
                for name, target in {
                    "visual.": "",
                    "visual.trunk.": "",
                    "vision_model.": "",
                    "visual_projection.": "visual_projection.",
                }.items()
            }
        },
        marks=(
            r"(state_dict/)?(visual|vision_model)\.",
            r"(state_dict/)?(text|text_model|token_embedding|transformer\.resblocks)\.",
        ),
        source="openai/CLIP, mlfoundations/open_clip, transformers: the image tower of both towers",
    ),
    Family(
        name="BEiT",
        branches={"model": {"model/": ""}},
        marks=(r"model/(lm_head|cls_pt_layers)\.",),
        source="microsoft/unilm, beit and beit2: before fine-tuning",
    ),
    Family(
        name="MAE",
        branches={"encoder": {"model/": "", "model/mask_token": "/decoder/", "model/decoder_": "/decoder/"}},
        marks=(r"model/(decoder_embed\.|mask_token)",),
        source="facebookresearch/mae",
    ),
    Family(
        name="stable-pretraining",
        branches={
            branch: {
                f"state_dict/{name}.{branch}.{wrapper}": ""
                for name in ("backbone", "encoder")
                for wrapper in ("", "backbone.", "vit.")
            }
            for branch in ("teacher", "student")
        },
        marks=(r"state_dict/(backbone|encoder)\.(teacher|student)\.",),
        source="rbalestr-lab/stable-pretraining: TeacherStudentWrapper; without one, as Lightning's",
    ),
    Family(
        name="solo-learn",
        branches={
            "online": {"state_dict/backbone.": "", "state_dict/encoder.": ""},
            "momentum": {"state_dict/momentum_backbone.": "", "state_dict/momentum_encoder.": ""},
        },
        marks=(r"state_dict/(momentum_)?(backbone|encoder)\.", r"state_dict/(momentum_)?(classifier|projector)\."),
        source="vturrisi/solo-learn",
    ),
    Family(
        name="Lightning",
        branches={
            "model": {
                f"state_dict/{name}": ""
                for name in ("backbone.", "encoder.", "model.", "net.", "trunk.", "model.backbone.", "model.encoder.")
            }
        },
        marks=(r"state_dict/(backbone|encoder|model|net|trunk)\.",),
        source="LightningModules that call their trunk backbone, encoder, model, net or trunk",
    ),
    Family(
        name="I-JEPA",
        branches={"target": {"target_encoder/": ""}, "context": {"encoder/": ""}},
        marks=(r"target_encoder/", r"predictor/"),
        source="facebookresearch/ijepa",
    ),
    Family(
        name="with moving average",
        branches={"average": {"ema_model.": ""}, "model": {"online_model.": ""}},
        marks=(r"ema_model\.", r"online_model\."),
        source="lucidrains/ema-pytorch",
    ),
    Family(name="DeepSpeed", branches={"model": {"module/": ""}}, source="engine.save_checkpoint, without ZeRO-3"),
    Family(name="teacher and student", branches={"teacher": {"teacher/": ""}, "student": {"student/": ""}}),
    Family(
        name="with moving average",
        branches={"average": {"state_dict_ema/": ""}, "model": {"state_dict/": ""}},
        marks=(r"state_dict_ema/",),
        source="timm",
    ),
    Family(
        name="with moving average",
        branches={"average": {"model_ema/": ""}, "model": {"model/": ""}},
        marks=(r"model_ema/",),
        source="torchvision's references, ConvNeXt",
    ),
    Family(name="state dict", branches={"model": {"state_dict/": ""}}, source="timm, torchvision's ImageNet example"),
    Family(name="state dict", branches={"model": {"model/": ""}}, source="torchvision's references, DeiT, MAE"),
    Family(
        name="state dict",
        branches={"model": {"": ""}},
        marks=(r"[^/]+$",),
        source="model.state_dict(): torchvision, timm, DINO, DINOv2, Hugging Face's hub",
    ),
)
"""In the order in which they are tried."""
