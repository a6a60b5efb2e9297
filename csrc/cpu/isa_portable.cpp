// The kernels with what every CPU of the architecture has (SSE2, NEON), in registers of 16 bytes.
#include "isa.h"

#define MMDET_DDETR_ISA portable
#define MMDET_DDETR_BYTES 16
#include "deform_conv_impl.h"
#include "deform_roi_pool_impl.h"
#include "depthwise_conv_impl.h"
#include "dropout_impl.h"
#include "linear_impl.h"
#include "matching_cost_impl.h"
#include "ms_deform_attn_impl.h"
#include "sigmoid_focal_loss_impl.h"
