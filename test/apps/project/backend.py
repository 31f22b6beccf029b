"""Builds the project of its folder, and leaves files there like setuptools; refuses to run as root."""

import os
import zipfile

METADATA = "Metadata-Version: 2.1\nName: shop\nVersion: 1.4\nRequires-Dist: tiny==1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    if os.getuid() == 0:
        raise SystemExit("a build ran as root")
    for trace in ("build", "shop.egg-info"):
        os.makedirs(trace, exist_ok=True)
    with zipfile.ZipFile(f"{wheel_directory}/shop-1.4-py3-none-any.whl", "w") as wheel:
        wheel.write("shop.py", "shop.py")
        wheel.writestr("shop-1.4.dist-info/METADATA", METADATA)
        wheel.writestr("shop-1.4.dist-info/WHEEL", WHEEL)
        wheel.writestr("shop-1.4.dist-info/RECORD", "")
    return "shop-1.4-py3-none-any.whl"
