# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The simulator (import name `fosp_sim`): SafeReach, demonstrators, recording, bridge. Imports no learner code."""
