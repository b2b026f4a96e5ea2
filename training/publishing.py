"""What `train.py` does on the Hub: asking for the right to push before hours of training, and pushing after them."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub.push import Account


def sign_in_early(args) -> "Account | None":
    """Who will push, found out before the training starts; None where nothing is pushed.

    Raises:
        ValueError: There is no token, it may not write, or the name is not one that it may push to.
    """
    if not args.push_to_hub:
        return None
    from hub.push import check_name, sign_in

    if args.hub_model_id is not None:
        check_name(args.hub_model_id, "--hub_model_id")
    account = sign_in([] if args.hub_model_id is None else [args.hub_model_id], args.hub_token)
    args.hub_model_id = args.hub_model_id or f"{account.name}/{args.output_dir.resolve().name}"
    check_name(args.hub_model_id, "--hub_model_id")
    return account


def publish(args, account: "Account | None", is_interrupted: bool) -> None:
    """Push the finished model folder; after a failure the folder is there, and the message says how to go on."""
    if account is None:
        return
    again = f"`python push_to_hub.py {args.output_dir} {args.hub_model_id}`"
    if is_interrupted:
        print(
            f"note: the training was interrupted, so nothing is pushed; push the model with {again}", file=sys.stderr
        )
        return
    from hub.model import publish_model

    try:
        with tempfile.TemporaryDirectory(prefix="mmfusion-push-") as scratch:
            publish_model(
                args.output_dir,
                args.hub_model_id,
                account,
                Path(scratch, "model"),
                private=args.hub_private_repo,
                message=f"Push the model of {args.output_dir.resolve().name}",
            )
    except (ValueError, OSError) as error:
        raise OSError(
            f"{error} The trained model is in `{args.output_dir}`; push it without training: {again}"
        ) from error
