from .adapters import FieldNetwork as FieldNetwork, as_network as as_network
from .base import Network as Network, Prediction as Prediction, Task as Task
from .cascade import Cascade as Cascade
from .checkpoint import Checkpoint as Checkpoint, load_checkpoint as load_checkpoint, release as release
from .conditioned import Conditioned as Conditioned
from .descriptors import DescriptorMaps as DescriptorMaps
from .keypoints import KeypointNetwork as KeypointNetwork
from .laplacian import LaplacianPyramid as LaplacianPyramid
from .linear import AffineNetwork as AffineNetwork
from .matching import MatchingNetwork as MatchingNetwork
from .oriented import Oriented as Oriented
from .pyramid import Pyramid as Pyramid
from .swin import SwinNetwork as SwinNetwork
from .template import ConditionalTemplate as ConditionalTemplate, LearnedTemplate as LearnedTemplate
from .unet import UNet as UNet
from .unrolled import Unrolled as Unrolled
