package main

// reasons says why a program fails with boxlite, as far as its source and boxlite's design go.
var reasons = map[string]string{}
