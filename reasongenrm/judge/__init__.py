"""The judge as a service: pairs, lists and single answers in; reasons, verdicts, probabilities out.

`api` says what is asked and answered, `service` asks the predictor, `server` is the program, `client` is for callers.
"""
