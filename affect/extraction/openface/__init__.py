"""The action-unit stage of OpenFace 2.2 as batched tensor operations, one file a step.

Baltrušaitis, Zadeh, Lim and Morency, "OpenFace 2.0: Facial Behavior Analysis Toolkit", FG 2018;
Baltrušaitis, Mahmoud and Robinson, "Cross-dataset learning and person-specific normalisation for
automatic Action Unit detection", FG 2015. OpenFace's model files are the user's own: they belong to
Carnegie Mellon University (academic, non-commercial use) and are neither bundled nor fetched.
"""
