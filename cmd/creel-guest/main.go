// Command creel-guest is PID 1 and the agent inside every VM.
package main

func main() {}
