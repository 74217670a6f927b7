"""What each server offers to hook on, one server a file."""
