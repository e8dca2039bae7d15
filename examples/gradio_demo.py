"""The page of `diffattn demo`: a prompt becomes a video twice, dense and sparse, offline on a CPU."""

from diffattn.demo import build_demo, launch

if __name__ == "__main__":
    launch(build_demo())
