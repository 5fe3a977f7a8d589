"""The states of a run."""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    """
    | from       | to                           | when |
    |------------|------------------------------|------|
    | PENDING    | PREPARING                    | the job is taken |
    | PREPARING  | PLACING                      | the data cache exists |
    | PLACING    | STARTING / FAILED            | enough agents are up and fit / the timeout says what is missing |
    | STARTING   | RUNNING / RECOVERING         | first step done / a rank or node failed, a rank was silent for too long, or the start timed out |
    | RUNNING    | RECOVERING                   | a rank or node failed, or a rank was silent for too long |
    | RUNNING    | RESIZING                     | nodes are there that the run has use for, and a step has become durable / a node is about to be taken away |
    | RUNNING    | DRAINING / FINISHED          | a stop was asked for / the last step is durable and exported |
    | RECOVERING | STARTING / PLACING / FAILED  | all nodes there / a node must be replaced / the verdict says stop |
    | RESIZING   | PLACING / RECOVERING         | the ranks have saved and ended / one failed meanwhile |
    | DRAINING   | STOPPED                      | the checkpoint is durable, or the notice is over (said) |

    A stop outside STARTING and RUNNING has nothing to save: it leads to STOPPED at once. An error that trying again cannot
    mend leads to FAILED from everywhere.
    """

    PENDING = "PENDING"
    PREPARING = "PREPARING"
    PLACING = "PLACING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    RESIZING = "RESIZING"
    DRAINING = "DRAINING"
    FINISHED = "FINISHED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        return self in (State.FINISHED, State.STOPPED, State.FAILED)
