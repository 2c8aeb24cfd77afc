"""Export: an edited model as an ordinary checkpoint folder, measured as it is written and reloaded before it appears.

    place     where it goes: checked first, written beside its place, moved there in one step, nothing left otherwise
    edits     the edited head: prune first, then steer the pruned head to ratios of the model as it was
    effect    what that head does on held-out text, with its numbers as they are stored
    weights   the model's files again, byte for byte, with another head
    reload    a separate process in which stock transformers loads the folder and runs it
    run       all of it in order, with the manifest `headscope.json`

Source: method §3, §4 and §6 (a tied head must be cloned *and* untied in the configuration, or a reload restores the old
one). An edit ΔE is stored as it is also where a model multiplies its logits by c: it was found for hidden states times
c, and (c·h)·(E + ΔE) = c·(h·(E + ΔE)).
"""
