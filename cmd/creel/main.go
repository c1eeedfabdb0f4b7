// Command creel runs each agent task in its own disposable MicroVM.
package main

func main() {}
