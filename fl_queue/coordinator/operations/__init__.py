"""What keeps runs going and what an operator does with them: healer, cancel, backup, enrolment, verification."""
