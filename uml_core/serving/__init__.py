EXPORT_FORMATS = ("safetensors", "onnx")
