"""A second, independently written oracle: every operator as a graph of ONNX's primitive operators, in float64 where the
first is float64, evaluated by ONNX's reference evaluator and by ONNX Runtime. Needs the extra ``opsocket[oracle]``.

Not made of ONNX's own ``Attention``, ``RotaryEmbedding`` or ``RMSNormalization``, whose meaning has changed between
versions. It shares with the first oracle the records that questions are put in, and nothing that computes.
"""
