# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
