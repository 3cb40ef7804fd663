from .arrays import array_from_image as array_from_image, image_from_array as image_from_array
from .monai import RegisterClassicald as RegisterClassicald
from .torchio import RegisterSubject as RegisterSubject
