"""What tries the product, shipped with it: a local stack, a workload, a proof, the demo."""
