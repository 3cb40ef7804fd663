"""Two local Ray nodes: prints their address, kills one of them at the first line of input, and ends at the second one.

A process of its own, since Ray leaves files open.
"""


def main() -> None:
    """Run the nodes until the input ends."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    try:
        print(cluster.address, flush=True)
        input()
        cluster.remove_node(node, allow_graceful=False)
        print("killed", flush=True)
        input()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
