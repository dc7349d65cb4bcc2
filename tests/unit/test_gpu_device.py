"""What `benchmarks.gpu` says of a device: kinds of kernels, seconds busy, FLOPs of a model, peaks."""

from __future__ import annotations

import math

import pytest
import timm
import torch

from benchmarks.gpu_device import Bench, DeviceTime, Span, kind_of, peak_flops_of, training_flops


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_bias_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", "matrix products"),
        (
            "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>",
            "matrix products",
        ),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "matrix products"),
        (
            "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, cutlass::bfloat16_t>>",
            "attention",
        ),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x64x64", "attention"),
        ("fmha_cutlassB_bf16_aligned_64x64_k64_sm80(PyTorchMemEffAttention::...)", "attention"),
        (
            "void at::native::multi_tensor_apply_kernel<at::native::FusedOptimizerTensorListMetadata<4>, "
            "at::native::FusedAdamMathFunctor<float, 4, (at::native::ADAM_MODE)1, false>>",
            "optimiser and gradient norm",
        ),
        ("void at::native::vectorized_layer_norm_kernel<c10::BFloat16, float>", "normalisation"),
        ("void at::native::GammaBetaBackwardCUDAKernelTemplate<float, float>", "normalisation"),
        ("void cunn_SoftMaxForward<4, float, float, float>", "normalisation"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "elementwise"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "copies and casts"),
        ("Memcpy HtoD (Pageable -> Device)", "copies and casts"),
        ("void at::native::(anonymous namespace)::grid_sampler_2d_kernel<float, int>", "augmentation"),
        ("triton_per_fused_add_native_layer_norm_mm_7", "fused by the compiler"),
        ("void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float>>", "reductions"),
        ("aten::mm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::view", "other"),
    ],
)
def test_kernels_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_device_is_busy_once_where_kernels_overlap() -> None:
    spans = [Span("gemm", 0, 40), Span("flash", 30, 60), Span("gemm", 80, 90), Span("Memcpy HtoD", 82, 84)]
    time = DeviceTime.of(spans)
    assert time.busy_s == pytest.approx(70e-6)
    assert time.shares == pytest.approx({"attention": 30 / 82, "matrix products": 50 / 82, "copies and casts": 2 / 82})
    assert time.idle_share(100e-6) == pytest.approx(0.3)
    assert time.idle_share(50e-6) == 0, "the profiler's own cost is no work"
    assert math.isnan(DeviceTime.of([]).idle_share(1.0)), "nothing recorded is not an idle device"


def test_flops_of_vit_b_are_three_forward_passes_as_published() -> None:
    """17.58 GMAC forward (timm's table); the way back is twice that, but for the picture's own gradient."""
    flops = training_flops(lambda: timm.create_model("vit_base_patch16_224", num_classes=0), (1, 3, 224, 224))
    assert flops == pytest.approx(3 * 2 * 17.58e9, rel=0.01)


def test_peaks() -> None:
    assert peak_flops_of("NVIDIA H100 80GB HBM3", None) == peak_flops_of("NVIDIA H200", None) == 989e12
    assert peak_flops_of("NVIDIA A100-SXM4-80GB", None) == 312e12
    assert peak_flops_of("NVIDIA H100 PCIe", None) is None, "a slower card of that name"
    assert peak_flops_of("NVIDIA H100 PCIe", 756) == 756e12


def test_on_a_cpu_operators_count_without_those_they_call() -> None:
    bench, values = Bench(torch.device("cpu"), small=True, peak_flops=None), torch.randn(300, 300)
    found = bench.busy(lambda: torch.nn.functional.linear(values, values))
    assert max(found.shares, key=lambda kind: found.shares[kind]) == "matrix products"
    assert 0 < found.busy_s < 1
