Theorem goal : {gold}.
Proof.
{answer}
Qed.
Check (goal : {gold}).
Print Assumptions goal.
