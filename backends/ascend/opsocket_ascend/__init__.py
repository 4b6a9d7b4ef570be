"""The backend for Huawei Ascend NPUs."""
