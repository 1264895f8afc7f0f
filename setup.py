# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Build description: two libraries, the simulator (folder `sim/`, import name `fosp_sim`) and the ROS 2 share folder.

The extras hold ranges; `config/constraints*.txt` hold the exact versions that are tested. `package.xml` holds the
rosdep keys of the same things for a machine with a ROS 2 distribution; libraries without a rosdep key stand only here.
"""

import os

from setuptools import find_packages, setup

PACKAGE = 'fosp_ros'
HERE = os.path.dirname(os.path.abspath(__file__))


def share_files(*folders: str) -> list[tuple[str, list[str]]]:
    """Return data_files entries for each folder, sub-folders included (a plain glob would flatten them)."""
    entries = []
    for folder in folders:
        for root, dirs, files in os.walk(os.path.join(HERE, folder)):
            dirs[:] = sorted(d for d in dirs if not d.startswith(('.', '__pycache__')))
            where = os.path.relpath(root, HERE)
            found = sorted(os.path.join(where, f) for f in files if not f.startswith('.'))
            if found:
                entries.append((f'share/{PACKAGE}/{where}', found))
    return entries


def ros_wheels(distribution: str, rclpy: str, messages: str) -> list[str]:
    """Return the wheels of one ROS 2 distribution; one distribution per environment."""
    names = ('sensor-msgs', 'geometry-msgs', 'diagnostic-msgs', 'trajectory-msgs', 'std-srvs')
    return [f'ros-{distribution}-rclpy[fastrtps]=={rclpy}', f'ros-{distribution}-lifecycle-msgs',
            *(f'ros-{distribution}-{name}=={messages}' for name in names), 'ros-domain-coordinator==0.12.0']


setup(
    name=PACKAGE,
    version='0.1.0',
    description='Offline-to-online safe reinforcement learning for robot arms, with a fail-closed safety filter',
    long_description='See README.md.',
    author='The fosp_ros authors',
    author_email='fosp-ros@example.org',
    maintainer='The fosp_ros authors',
    maintainer_email='fosp-ros@example.org',
    license='Apache-2.0',
    # Named one by one: plain discovery would also install `launch`, `config`, `models`, `sim` and `test`.
    packages=[*find_packages(include=['fosp_core*', 'fosp_ros*']),
              'fosp_sim', *(f'fosp_sim.{name}' for name in find_packages('sim'))],
    package_dir={'fosp_sim': 'sim'},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        *share_files('launch', 'config', 'models'),
    ],
    python_requires='>=3.11',
    install_requires=['setuptools'],
    extras_require={
        'core': ['numpy>=1.26,<3', 'pyyaml>=6', 'rosbags>=0.11.9,<0.12', 'mcap>=1.2,<2', 'zstandard>=0.20',
                 'safetensors>=0.5,<1', 'onnxruntime>=1.20,<2', 'opencv-python-headless>=4.9', 'tqdm>=4.66'],
        'train': ['torch==2.13.0', 'onnx>=1.17,<2', 'onnxscript>=0.5,<1', 'scipy>=1.11,<2',
                  'tensorboard>=2.18,<3'],
        'formats': ['h5py>=3.11,<4', 'pyarrow>=17,<27'],
        'sim': ['mujoco==4.0.0', 'gymnasium==1.4.0', 'PyOpenGL>=3.1.7'],
        # What `make sim-gym` needs beside safety-gymnasium itself, whose own pins nothing of today satisfies.
        'sim-gym': ['xmltodict>=0.13,<2', 'imageio>=2.27,<3'],
        'ros-jazzy': ros_wheels('jazzy', '7.1.6', '5.3.6'),
        'ros-kilted': ros_wheels('kilted', '9.1.2', '5.5.1'),
        'report': ['pillow>=10'],
        # Its wheels for ARM end at Python 3.10. Needs the system's libusb-1.0.
        'realsense': ['pyrealsense2>=2.55,<3; platform_machine == "x86_64"'],
        # Not installed by `make venv`: what `make coverage` and `make mutation` need.
        'dev': ['coverage>=7.6,<8', 'mutmut>=3.8,<4'],
        'test': ['pytest>=7.4', 'pytest-timeout>=2.2', 'pytest-xdist>=3.5,<4', 'hypothesis>=6.98', 'psutil>=5.9',
                 'ruff>=0.6'],
    },
    zip_safe=True,
    entry_points={
        'console_scripts': [
            'fosp = fosp_core.cli:main',
            'fosp_sim_bridge = fosp_sim.bridge_node:main',
            'fosp_realsense = fosp_ros.realsense_node:main',
            'fosp_velocity_adapter = fosp_ros.velocity_adapter_node:main',
            'fosp_learner = fosp_ros.learner_node:main',
            'fosp_safety_filter = fosp_ros.safety_filter_node:main',
            'fosp_trainer = fosp_ros.trainer_node:main',
        ],
    },
)
